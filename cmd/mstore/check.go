package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"pennypost/internal/cli"
	"pennypost/internal/durable"
	"pennypost/internal/envelope"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

type finding struct {
	User    string `json:"user"`
	State   string `json:"state"` // found, repaired, left
	Kind    string `json:"kind"`
	Mailbox string `json:"mailbox,omitempty"`
	Path    string `json:"path"`
	What    string `json:"what"`
	Remedy  string `json:"remedy"`
	Serious bool   `json:"serious"`
}

// check prints what is wrong and repairs it unless that was not wanted.
func check(j *job) error {
	if !j.dry {
		if err := rescueRoot(j); err != nil {
			return err
		}
	}
	s, err := j.open()
	if err != nil {
		return err
	}
	p := newProgress(j.c.App.ErrWriter)
	left := false
	var werr error
	err = s.Check(j.c.Context, mailbox.CheckOptions{
		Repair: !j.dry, Read: j.c.Bool("read"), Mailboxes: j.c.StringSlice("mailbox"), Progress: p.show,
		Report: func(f mailbox.Finding) {
			p.clear()
			left = left || !f.Repaired
			werr = errors.Join(werr, j.printFinding(f))
		},
	})
	p.clear()
	err = errors.Join(err, werr, s.Close())
	if err == nil && left {
		return cli.Exit(envelope.ExDataErr, nil)
	}
	return err
}

func (j *job) printFinding(f mailbox.Finding) error {
	state := "left"
	switch {
	case f.Repaired:
		state = "repaired"
	case j.dry:
		state = "found"
	}
	if j.json {
		return cli.PrintJSON(j.c.App.Writer, finding{j.name, state, f.Kind, f.Mailbox, f.Path, f.What, f.Remedy, f.Serious})
	}
	box := f.Mailbox
	if box == "" {
		box = "-"
	}
	_, err := fmt.Fprintf(j.c.App.Writer, "%s %s %s %s %s %s (%s)\n", cli.Escape(j.name, ' '), state, f.Kind,
		cli.Escape(box, ' '), cli.Escape(f.Path, ' '), cli.Escape(f.What, 0), cli.Escape(f.Remedy, 0))
	return err
}

// rescueRoot makes the cur/ of a Maildir that has lost it: without, there is no account to check.
func rescueRoot(j *job) error {
	dir := j.user.Maildir
	if _, err := os.Stat(filepath.Join(dir, "cur")); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err != nil {
		return nil // open says that it is no Maildir
	}
	if err := maildir.Create(durable.OS{}, dir); err != nil {
		return err
	}
	return j.printFinding(mailbox.Finding{
		Path: filepath.Join(dir, "cur"), Kind: "no-cur", What: "the directory is missing: the account cannot be opened", Remedy: "makes it",
		Repaired: true, Serious: true,
	})
}

// reindex makes indexes anew.
func reindex(j *job) error {
	s, err := j.open()
	if err != nil {
		return err
	}
	names := j.c.StringSlice("mailbox")
	if len(names) == 0 {
		folders, err := s.List(j.c.Context)
		if err != nil {
			return errors.Join(err, s.Close())
		}
		for _, f := range folders {
			if f.Exists {
				names = append(names, f.Name)
			}
		}
	}
	p := newProgress(j.c.App.ErrWriter)
	var errs []error
	for i, name := range names {
		p.show(name, i, len(names))
		if j.dry {
			_, err = fmt.Fprintf(j.c.App.Writer, "would make the index of %s anew\n", cli.Escape(name, 0))
		} else {
			err = s.Reindex(j.c.Context, name)
		}
		errs = append(errs, err)
	}
	p.clear()
	return errors.Join(append(errs, s.Close())...)
}
