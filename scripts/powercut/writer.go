package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
	"pennypost/internal/maildir"
	"pennypost/internal/spool"
)

// message is the text that belongs to a token: a few kilobytes, now and then more than a
// spool writer holds in memory.
func message(token string) []byte {
	h := crc32.ChecksumIEEE([]byte(token))
	size := 200 + int(h%9000)
	if h%16 == 0 {
		size += 150_000
	}
	var b bytes.Buffer
	b.WriteString("From: alice@example.test\nTo: bob@example.test\nSubject: " + token + "\n\n")
	for i := 0; b.Len() < size; i++ {
		b.WriteString(token + " " + strconv.Itoa(i) + " " + strconv.FormatUint(uint64(h)*uint64(i+1), 16) + "\n")
	}
	b.WriteString("END " + token + "\n")
	return b.Bytes()
}

// tokenOf finds the token in the last line of what should be a message.
func tokenOf(b []byte) string {
	b = bytes.TrimRight(b, "\n")
	last := b[bytes.LastIndexByte(b, '\n')+1:]
	token, ok := bytes.CutPrefix(last, []byte("END "))
	if !ok {
		return ""
	}
	return string(token)
}

// writer is the other half of this program: "powercut writer MODE DIR SECONDS WRITERS" makes
// messages durable in one of several ways and says "ACK token" for each one it believes in.
func writer(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: powercut writer MODE DIR SECONDS WRITERS")
	}
	secs, err1 := strconv.ParseFloat(args[2], 64)
	n, err2 := strconv.Atoi(args[3])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	put, err := putter(args[0], args[1])
	if err != nil {
		return err
	}
	end := time.Now().Add(time.Duration(secs * float64(time.Second)))
	errs := make([]error, n)
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			for i := 0; time.Now().Before(end) && errs[w] == nil; i++ {
				token := fmt.Sprintf("%s-%d-%d", args[0], w, i)
				if errs[w] = put(token); errs[w] == nil {
					// One write a line: the reader takes the time of each.
					_, errs[w] = os.Stdout.WriteString("ACK " + token + "\n")
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// putter returns the way of writing that mode names.
func putter(mode, dir string) (func(token string) error, error) {
	tmp, dst := filepath.Join(dir, "tmp"), filepath.Join(dir, "new")
	switch mode {
	case "spool":
		s, err := spool.Open(dir, spool.Options{})
		return func(token string) error { return putSpool(s, token) }, err
	case "publish":
		return func(token string) error {
			return durable.Publish(filepath.Join(tmp, token), filepath.Join(dst, token), bytes.NewReader(message(token)))
		}, nil
	case "rename":
		d, err := durable.OpenDir(dst)
		return func(token string) error {
			if err := putRename(tmp, dst, token, true); err != nil {
				return err
			}
			return d.Sync()
		}, err
	case "maildir":
		return maildirPutter(dir, func(string) string { return "" }), nil
	case "maildirs": // one for each writer, so that each commits alone
		return maildirPutter(dir, func(token string) string { return strings.Split(token, "-")[1] }), nil
	case "nodir": // wrong: the name is not synced
		return func(token string) error { return putRename(tmp, dst, token, true) }, nil
	case "nofile": // wrong: nothing is synced but the name
		d, err := durable.OpenDir(dst)
		return func(token string) error {
			if err := putRename(tmp, dst, token, false); err != nil {
				return err
			}
			return d.Sync()
		}, err
	}
	return nil, fmt.Errorf("no mode %q", mode)
}

func putSpool(s *spool.Spool, token string) error {
	w, err := s.Create(&envelope.Envelope{From: "alice@example.test", To: []envelope.Recipient{{Addr: "bob@example.test"}}})
	if err != nil {
		return err
	}
	if _, err := w.Write(message(token)); err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Commit()
}

// maildirPutter delivers as mdeliver does; sub picks the Maildir below dir.
func maildirPutter(dir string, sub func(token string) string) func(token string) error {
	set := maildir.NewSet(maildir.Options{Create: true})
	return func(token string) error {
		m, err := set.Open(filepath.Join(dir, sub(token)))
		if err != nil {
			return err
		}
		_, err = m.Deliver(context.Background(), []byte("Return-Path: <>\n"), bytes.NewReader(message(token)))
		return errors.Join(err, m.Close())
	}
}

// putRename is a Maildir delivery up to the sync of the directory.
func putRename(tmp, dst, token string, sync bool) error {
	from := filepath.Join(tmp, token)
	f, err := os.OpenFile(from, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(message(token))
	if err == nil && sync {
		err = durable.Sync(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return durable.Rename(from, filepath.Join(dst, token))
}
