package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"pennypost/internal/cli"
	"pennypost/internal/dsn"
	"pennypost/internal/envelope"
	"pennypost/internal/spool"
	"pennypost/internal/worker"
)

// options is what the flags and the configuration say.
type options struct {
	from            string // "" is the null reverse-path
	report, message string // file names, "-" for standard input
	kind            dsn.Kind
	full            bool
	envid           string
	hostname        string
	postmaster      string
	now             time.Time
}

// write prints the notification; nothing when none is due.
func write(w io.Writer, o options, report, message io.Reader) error {
	id, results, err := readReport(report)
	if err != nil {
		return cli.Exit(envelope.ExDataErr, fmt.Errorf("report: %w", err))
	}
	original, err := seekable(message)
	if err != nil {
		return cli.Exit(envelope.ExIOErr, fmt.Errorf("message: %w", err))
	}
	env := &envelope.Envelope{ID: id, From: o.from, EnvID: o.envid, EOL: envelope.EOLLF}
	if o.full {
		env.Ret = "FULL"
	}
	due := dsn.Due(env, o.kind, recipients(o, results))
	if len(due) == 0 {
		return nil
	}
	return dsn.Write(w, dsn.Report{
		ID: spool.NewID(o.now), Kind: o.kind, Env: env, Recipients: due, Hostname: o.hostname, Postmaster: o.postmaster,
		Now: o.now, Original: original, MaxFull: original.Size() + 1, // who asks by hand has chosen
	})
}

// recipients turns results into recipients that ask for every kind of report: a report by hand
// knows no NOTIFY. A deferral is no failure yet.
func recipients(o options, results []worker.Result) []dsn.Recipient {
	var rs []dsn.Recipient
	for _, r := range results {
		if o.kind == dsn.Failure && r.Verdict != envelope.Failed {
			continue
		}
		rs = append(rs, dsn.Recipient{
			Recipient: envelope.Recipient{Addr: r.To, Notify: []string{"SUCCESS", "FAILURE", "DELAY"}},
			Status:    r.Status, Last: o.now,
		})
	}
	return rs
}

// line is what mdeliver --json and mrelay --json print: a whole report, or one result.
type line struct {
	ID      string          `json:"id"`
	Results []worker.Result `json:"results"`
	worker.Result
}

func readReport(r io.Reader) (id string, results []worker.Result, err error) {
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var l line
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", nil, err
		}
		if l.ID != "" {
			id = l.ID
		}
		results = append(results, l.Results...)
		if l.To != "" {
			results = append(results, l.Result)
		}
	}
	if len(results) == 0 {
		return "", nil, errors.New("no results in it")
	}
	for _, r := range results {
		if _, err := envelope.ParseAddress(r.To); err != nil {
			return "", nil, err
		}
	}
	return id, results, nil
}

// seekable gives a message that can be read twice. A pipe is copied to a file without a name.
func seekable(r io.Reader) (*io.SectionReader, error) {
	if f, ok := r.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			return io.NewSectionReader(f, 0, info.Size()), nil
		}
	}
	tmp, err := os.CreateTemp("", "mbounce")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(tmp.Name()); err != nil {
		return nil, errors.Join(err, tmp.Close())
	}
	n, err := io.Copy(tmp, r)
	if err != nil {
		return nil, errors.Join(err, tmp.Close())
	}
	return io.NewSectionReader(tmp, 0, n), nil // open until the process ends
}
