package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"pennypost/internal/cli"
	"pennypost/internal/envelope"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

type listed struct {
	User        string   `json:"user"`
	Mailbox     string   `json:"mailbox"`
	Messages    int      `json:"messages"`
	Unseen      int      `json:"unseen"`
	Size        *int64   `json:"size,omitempty"` // octets as sent; missing where they are not known
	UIDValidity uint32   `json:"uidvalidity"`
	UIDNext     uint32   `json:"uidnext"`
	ModSeq      uint64   `json:"highestmodseq"`
	Subscribed  bool     `json:"subscribed"`
	SpecialUse  []string `json:"special_use,omitempty"`
}

// list prints a line for each mailbox.
func list(j *job) error {
	s, err := j.open()
	if err != nil {
		return err
	}
	folders, err := s.List(j.c.Context)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	var errs []error
	for _, f := range folders {
		if f.Exists {
			errs = append(errs, j.listOne(s, f))
		}
	}
	return errors.Join(append(errs, s.Close())...)
}

func (j *job) listOne(s *mailbox.Store, f mailbox.Folder) error {
	st, err := s.Status(j.c.Context, f.Name)
	if err != nil {
		return err
	}
	if st.Size < 0 && j.c.Bool("read") {
		if st, err = j.sized(s, f.Name); err != nil {
			return err
		}
	}
	use, err := s.SpecialUse(f.Name)
	if err != nil {
		return err
	}
	l := listed{
		j.name, f.Name, st.Messages, st.Unseen, nil, st.UIDValidity, st.UIDNext, st.HighestModSeq, f.Subscribed, use,
	}
	size := "-"
	if st.Size >= 0 {
		l.Size = &st.Size
		size = strconv.FormatInt(st.Size, 10)
	}
	if j.json {
		return cli.PrintJSON(j.c.App.Writer, l)
	}
	marks := strings.ToLower(strings.ReplaceAll(strings.Join(use, ","), `\`, ""))
	if f.Subscribed {
		marks = strings.TrimPrefix(marks+",subscribed", ",")
	}
	if marks == "" {
		marks = "-"
	}
	_, err = fmt.Fprintf(j.c.App.Writer, "%s %d %d %s %d %d %d %s %s\n", cli.Escape(j.name, ' '), st.Messages, st.Unseen, size,
		st.UIDValidity, st.UIDNext, st.HighestModSeq, cli.Escape(marks, ' '), cli.Escape(f.Name, 0))
	return err
}

// sized is the status of a mailbox after all sizes were made known, by reading messages.
func (j *job) sized(s *mailbox.Store, name string) (mailbox.Status, error) {
	m, err := s.Mailbox(j.c.Context, name)
	if err != nil {
		return mailbox.Status{}, err
	}
	v, err := m.Select(j.c.Context, true)
	if err == nil {
		err = errors.Join(v.Sizes(j.c.Context, []mailbox.Range{{First: 1, Last: 1<<32 - 1}}), v.Close())
	}
	if err := errors.Join(err, m.Close()); err != nil {
		return mailbox.Status{}, err
	}
	return s.Status(j.c.Context, name)
}

type used struct {
	User          string `json:"user"`
	Octets        int64  `json:"octets"`
	OctetsLimit   int64  `json:"octets_limit"` // 0 is none
	Messages      int64  `json:"messages"`
	MessagesLimit int64  `json:"messages_limit"`
}

// quota prints what is used; counting anew is also what makes the file.
func quota(j *job) error {
	if j.dry && j.c.Bool("recount") {
		return cli.Usage("--recount and --dry-run exclude each other")
	}
	s, err := j.open()
	if err != nil {
		return err
	}
	u, limit, err := s.Usage(j.c.Context)
	if err == nil && j.c.Bool("recount") {
		u, err = s.Recount(j.c.Context)
	}
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	if limit == (mailbox.Limits{}) {
		limit = fileLimit(j.user.Maildir)
	}
	out := used{j.name, u.Octets, limit.Octets, u.Messages, limit.Messages}
	if j.json {
		err = cli.PrintJSON(j.c.App.Writer, out)
	} else {
		_, err = fmt.Fprintf(j.c.App.Writer, "%s %d %s %d %s\n", cli.Escape(j.name, ' '), u.Octets, orNone(limit.Octets), u.Messages, orNone(limit.Messages))
	}
	if err == nil && (limit.Octets > 0 && u.Octets > limit.Octets || limit.Messages > 0 && u.Messages > limit.Messages) {
		return cli.Exit(envelope.ExCantCreat, fmt.Errorf("%s is over quota", j.name))
	}
	return err
}

// fileLimit is the limit that maildirsize was made for, which holds where the account has none.
func fileLimit(dir string) (l mailbox.Limits) {
	f, err := os.Open(filepath.Join(dir, maildir.SizeName))
	if err != nil {
		return l // none is kept
	}
	defer f.Close()
	if size, err := maildir.ReadMaildirSize(f); err == nil {
		l = mailbox.Limits{Octets: size.Limit.Octets, Messages: size.Limit.Messages}
	}
	return l
}

func orNone(n int64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}
