package main

import (
	"errors"
	"fmt"
	"strings"

	"pennypost/internal/cli"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

// uses are the special uses that a folder can be given, RFC 6154 §2 and RFC 8457 §3.
const uses = "all archive drafts flagged junk sent trash important"

// create makes the tree of an account; what is there stays.
func create(j *job) error {
	folders := j.cfg.Store.Folders
	if j.c.IsSet("folder") {
		folders = j.c.StringSlice("folder")
	}
	for _, f := range folders {
		name, use, _ := strings.Cut(f, "=")
		if name == "" || use != "" && !strings.Contains(" "+uses+" ", " "+use+" ") {
			return cli.Usage("--folder %q: want NAME or NAME=USE, with one of %s", f, uses)
		}
	}
	if j.dry {
		_, err := fmt.Fprintf(j.c.App.Writer, "would make %s with %s\n", cli.Escape(j.user.Maildir, 0), cli.Escape(strings.Join(folders, " "), 0))
		return err
	}
	j.o.Create = true
	s, err := j.open()
	if err != nil {
		return err
	}
	errs := []error{s.Subscribe(j.c.Context, maildir.Inbox, true)}
	for _, f := range folders {
		errs = append(errs, j.createFolder(s, f))
	}
	return errors.Join(append(errs, s.Close())...)
}

func (j *job) createFolder(s *mailbox.Store, folder string) error {
	name, use, _ := strings.Cut(folder, "=")
	err := s.Create(j.c.Context, name)
	if err != nil && !errors.Is(err, mailbox.ErrExists) {
		return err
	}
	if errors.Is(err, mailbox.ErrExists) {
		have, err := s.SpecialUse(name)
		if err != nil || len(have) > 0 {
			return err
		}
	}
	if err := s.Subscribe(j.c.Context, name, true); err != nil || use == "" {
		return err
	}
	return s.SetSpecialUse(j.c.Context, name, []string{`\` + strings.ToUpper(use[:1]) + use[1:]})
}
