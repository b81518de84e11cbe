package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"pennypost/internal/cli"
	"pennypost/internal/mailbox"
)

type taken struct {
	User        string   `json:"user"`
	Mailbox     string   `json:"mailbox"`
	From        string   `json:"from"`
	Messages    int      `json:"messages"`
	Kept        int      `json:"kept"`
	New         int      `json:"new"`
	UIDValidity uint32   `json:"uidvalidity"`
	UIDNext     uint32   `json:"uidnext"`
	POP3        int      `json:"pop3"`
	ModSeq      uint64   `json:"above_modseq"`
	Keywords    []string `json:"keywords,omitempty"`
	Rename      string   `json:"rename,omitempty"`
	ACL         int      `json:"acl,omitempty"`
	Lost        []string `json:"lost,omitempty"`
}

// convert takes an account over, or shows what that would be.
func convert(j *job) error {
	j.o.Courier = true
	s, err := j.open()
	if err != nil {
		return err
	}
	if j.c.Bool("back") {
		return errors.Join(j.handBack(s), s.Close())
	}
	for _, n := range j.before.notes {
		if err := j.note("%s", n); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	if f := j.before.uidl; f != "" && f != j.cfg.POP3.UIDL {
		err = j.note("Dovecot makes UIDLs as %s, pop3.uidl here is %s: set it to the former, or POP3 clients fetch everything again", f, j.cfg.POP3.UIDL)
	}
	if err == nil && j.dry {
		err = j.plan(s)
	} else if err == nil {
		err = j.takeOver(s)
	}
	return errors.Join(err, s.Close())
}

func (j *job) plan(s *mailbox.Store) error {
	folders, subscriptions, err := s.Plan(j.c.Context)
	if err != nil {
		return err
	}
	for _, t := range folders {
		if err := j.printTaken(t); err != nil {
			return err
		}
	}
	for _, name := range subscriptions {
		if err := j.record("subscribe", name); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) takeOver(s *mailbox.Store) error {
	p := newProgress(j.c.App.ErrWriter)
	done := 0
	var errs []error
	_, subscriptions, err := s.Plan(j.c.Context)
	if err != nil {
		return err
	}
	err = s.Convert(j.c.Context, func(t mailbox.Taken) {
		done++
		p.show(t.Mailbox, done, done)
		if above := j.above(t.Mailbox); above > t.Modseq {
			errs = append(errs, s.RaiseModSeq(j.c.Context, t.Mailbox, above))
		}
		p.clear()
		errs = append(errs, j.printTaken(t))
	})
	for _, name := range subscriptions {
		errs = append(errs, j.record("subscribe", name))
	}
	return errors.Join(append(errs, err)...)
}

// above is the MODSEQ that another server has told clients of the mailbox.
func (j *job) above(name string) uint64 {
	return max(j.before.of(name), j.c.Uint64("above"))
}

func (j *job) printTaken(t mailbox.Taken) error {
	out := taken{
		j.name, t.Mailbox, string(t.From), t.Messages, t.Kept, t.New, t.UIDValidity, t.UIDNext, t.POP3,
		max(t.Modseq, j.above(t.Mailbox)), t.Keywords, t.Rename, t.ACL, t.Lost,
	}
	if j.json {
		return cli.PrintJSON(j.c.App.Writer, out)
	}
	validity, keywords := "new", "-"
	if t.UIDValidity > 0 {
		validity = strconv.FormatUint(uint64(t.UIDValidity), 10)
	}
	if len(t.Keywords) > 0 {
		keywords = strings.Join(t.Keywords, ",")
	}
	_, err := fmt.Fprintf(j.c.App.Writer, "mailbox %s %s %d %d %d %s %d %d %d %s %s\n", cli.Escape(j.name, ' '), out.From, t.Messages, t.Kept, t.New,
		validity, t.UIDNext, t.POP3, out.ModSeq, cli.Escape(keywords, ' '), cli.Escape(t.Mailbox, 0))
	if err == nil && t.Rename != "" {
		err = j.record("rename", t.Path+" "+t.Rename)
	}
	if err == nil && t.ACL > 0 {
		err = j.record("acl", fmt.Sprintf("%d %s", t.ACL, t.Mailbox))
	}
	for _, l := range t.Lost {
		if err == nil {
			err = j.record("lost", t.Mailbox+": "+l)
		}
	}
	return err
}

func (j *job) note(format string, a ...any) error { return j.record("note", fmt.Sprintf(format, a...)) }

// record prints a line of another kind than "mailbox".
func (j *job) record(kind, text string) error {
	if j.json {
		return cli.PrintJSON(j.c.App.Writer, map[string]string{"user": j.name, kind: text})
	}
	_, err := fmt.Fprintf(j.c.App.Writer, "%s %s %s\n", kind, cli.Escape(j.name, ' '), cli.Escape(text, 0))
	return err
}

// handBack prints the commands that tell Dovecot what clients have seen here.
func (j *job) handBack(s *mailbox.Store) error {
	folders, err := s.List(j.c.Context)
	if err != nil {
		return err
	}
	user := ""
	if j.user.Address != "" {
		user = "-u " + quote(j.name) + " "
	}
	w := j.c.App.Writer
	for _, f := range folders {
		if !f.Exists {
			continue
		}
		st, err := s.Status(j.c.Context, f.Name)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "doveadm mailbox update %s--min-highest-modseq %d %s\n", user, st.HighestModSeq, quote(f.Name)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(w, "doveconf pop3_uidl_format # should say %s\n", j.cfg.POP3.UIDL)
	return err
}

// quote makes a word of a shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%_+=:,./-", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
