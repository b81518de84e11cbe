package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// result is what the last line says.
type result struct {
	Accepted, Delivered, Kills, Duplicates int
	By                                     map[string]int
	Took                                   time.Duration
}

func (r *result) String() string {
	var by []string
	for name, n := range r.By {
		by = append(by, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(by)
	return fmt.Sprintf("%d accepted, %d delivered, %d kills (%s), %d duplicates, %v", r.Accepted, r.Delivered, r.Kills, strings.Join(by, ", "), r.Duplicates, r.Took)
}

// settle waits until the queue is empty. Both daemons run by now.
func (s *storm) settle(ctx context.Context) error {
	for {
		out, err := exec.CommandContext(ctx, filepath.Join(s.o.Bin, "mqueue"), "--config", s.in.Config, "list").Output()
		in, rerr := os.ReadDir(filepath.Join(s.in.Spool, "incoming"))
		if err == nil && rerr == nil && len(out) == 0 && !s.anyComplete(in) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the queue does not get empty (%v): %d files in incoming/, list:\n%s", errors.Join(err, rerr), len(in), tail(string(out), 2000))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// anyComplete tells whether incoming/ holds a message: what a killed submitter left unfinished
// is none, and stays for an hour.
func (s *storm) anyComplete(files []os.DirEntry) bool {
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(s.in.Spool, "incoming", f.Name()))
		if err == nil && strings.HasPrefix(string(b), "pennypost-spool 1 ") && !strings.HasPrefix(string(b), "pennypost-spool 1 0000000000 0000000000000000000") {
			return true
		}
	}
	return false
}

// compare looks at every message of the Maildir.
func (s *storm) compare() (*result, error) {
	files, err := s.in.Mail(to)
	if err != nil {
		return nil, err
	}
	if s.o.Lose {
		if files, err = s.lose(files); err != nil {
			return nil, err
		}
	}
	r := &result{Accepted: len(s.accepted), Delivered: len(files), By: s.kills}
	_, r.Kills = s.count()
	seen := map[int]int{}
	var faults []error
	for _, f := range files {
		n, err := check(f)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		seen[n]++
		if seen[n] > 1 {
			r.Duplicates++
		}
	}
	for n, how := range s.accepted {
		if seen[n] == 0 {
			faults = append(faults, fmt.Errorf("message %d was accepted (%s) and is not in the Maildir", n, how))
		}
	}
	if r.Duplicates > 0 && s.kills["mqueue"]+s.kills["mdeliver"] == 0 {
		faults = append(faults, fmt.Errorf("%d duplicates and no kill that explains one", r.Duplicates))
	}
	return r, errors.Join(faults...)
}

// check reads one message file and returns its number; a half message is an error.
func check(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b), "\nX-Kill: ")
	num, rest, ok2 := strings.Cut(rest, "\n\n")
	n, err := strconv.Atoi(num)
	if !ok || !ok2 || err != nil {
		return 0, fmt.Errorf("%s is none of our messages", file)
	}
	_, body, _ := strings.Cut(text(n), "\n\n")
	if rest != body {
		return 0, fmt.Errorf("%s: message %d is not whole: %d octets of body, %d expected", file, n, len(rest), len(body))
	}
	return n, nil
}

// lose removes all copies of one accepted message.
func (s *storm) lose(files []string) ([]string, error) {
	for n := range s.accepted {
		return slices.DeleteFunc(files, func(f string) bool {
			m, err := check(f)
			return err == nil && m == n && os.Remove(f) == nil
		}), nil
	}
	return nil, errors.New("nothing was accepted, so nothing can be lost")
}
