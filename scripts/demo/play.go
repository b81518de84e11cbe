package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// play is the whole demonstration, one act after the other.
func (d *demo) play() error {
	for _, act := range []func() error{d.begin, d.pastADeadMX, d.backAsABounce, d.throughAnOutage, d.end} {
		if err := act(); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) begin() error {
	err := d.step("", "sandbox up a --host 127.0.0.2 --domain a.test --smtp-port $port --mx-port $port --resolver $dns && cat a/env",
		func(out string) (string, error) {
			greeting, err := d.greeting(hostA)
			if err != nil {
				return "", err
			}
			return "host a.test is up and greets with " + strconv.Quote(greeting), want(out, "PP_HOST="+hostA)
		})
	if err != nil {
		return err
	}
	return d.step("a", "mxlookup b.test", func(out string) (string, error) {
		first, second := strings.Index(out, "dead.b.test"), strings.Index(out, "mx.b.test")
		if first < 0 || second < first {
			return "", fmt.Errorf("expected dead.b.test before mx.b.test, got %q", out)
		}
		if c, err := net.Dial("tcp", d.addr(dead)); err == nil {
			c.Close()
			return "", fmt.Errorf("expected nobody at %s, got a connection", d.addr(dead))
		}
		return "b.test has two MX hosts, and nobody answers at the better one", nil
	})
}

func (d *demo) addr(host string) string { return net.JoinHostPort(host, strconv.Itoa(d.port)) }

func (d *demo) greeting(host string) (string, error) {
	c, err := net.Dial("tcp", d.addr(host))
	if err != nil {
		return "", err
	}
	defer c.Close()
	b := make([]byte, 512)
	n, err := c.Read(b)
	line := strings.TrimSpace(string(b[:n]))
	if err != nil || !strings.HasPrefix(line, "220 ") {
		return "", fmt.Errorf("expected a greeting 220, got %q: %w", line, err)
	}
	return line, nil
}

// text and attachment of the letter: what must arrive, octet for octet.
const text = "Grüße aus dem Postamt, für 1 ¢.\nПривет, 你好.\n"

func attachment() []byte {
	b := make([]byte, 4000)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	return b
}

func (d *demo) pastADeadMX() error {
	if err := errors.Join(os.WriteFile(filepath.Join(d.dir, "note"), []byte(text), 0o644),
		os.WriteFile(filepath.Join(d.dir, "stamp.bin"), attachment(), 0o644)); err != nil {
		return err
	}
	var id string
	err := d.step("a", "cat note | msend --print-id -f alice@a.test -s 'Grüße, und eine Marke' -a stamp.bin bob@b.test", func(out string) (string, error) {
		if id = strings.TrimSpace(out); id == "" || strings.ContainsAny(id, " \n") {
			return "", fmt.Errorf("expected a queue id, got %q", out)
		}
		return "msend took a letter with non-ASCII text and an attachment as " + id, within(func() error { return d.waiting("a", id) })
	})
	if err != nil {
		return err
	}
	err = d.step("a", "mqueue list", func(out string) (string, error) {
		return "it is queued: no MX of b.test answers yet", want(out, id, "bob@b.test")
	})
	if err != nil {
		return err
	}
	err = d.step("", "sandbox up b --host 127.0.0.3 --domain b.test --smtp-port $port --mx-port $port --resolver $dns && cat b/env",
		func(out string) (string, error) {
			greeting, err := d.greeting(hostB)
			if err != nil {
				return "", err
			}
			return "host b.test is up, the backup MX only, and greets with " + strconv.Quote(greeting), want(out, "PP_HOST="+hostB)
		})
	if err != nil {
		return err
	}
	err = d.step("a", "mqueue retry "+id, func(string) (string, error) {
		return "an attempt is due at once, and it empties the queue", within(func() error { return d.empty("a") })
	})
	if err != nil {
		return err
	}
	err = d.step("a", "mqueue explain "+id, func(out string) (string, error) {
		return "the letter went to mx.b.test, the backup, as nobody answers at dead.b.test", want(out, "<bob@b.test>: relayed", "by mx.b.test["+hostB+"]")
	})
	if err != nil {
		return err
	}
	settle(func() error { _, err := d.onlyMail("b", "bob@b.test"); return err })
	return d.step("b", "ls $PP_MAILDIRS/b.test/bob/new && sed '/^$/q' $PP_MAILDIRS/b.test/bob/new/*", func(out string) (string, error) {
		m, err := d.onlyMail("b", "bob@b.test")
		if err != nil {
			return "", err
		}
		return d.checkLetter(out, m)
	})
}

// checkLetter compares what arrived with what was sent.
func (d *demo) checkLetter(out string, raw []byte) (string, error) {
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return "", err
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject"))
	if err != nil || subject != "Grüße, und eine Marke" {
		return "", fmt.Errorf("expected the subject it was sent with, got %q: %w", subject, err)
	}
	if err := want(out, "Return-Path: <alice@a.test>", "Delivered-To: bob@b.test", "Message-ID:", "Date:"); err != nil {
		return "", err
	}
	if n := len(m.Header["Received"]); n < 2 {
		return "", fmt.Errorf("expected a Received line of each host, got %d", n)
	}
	parts, err := readParts(m.Header.Get("Content-Type"), m.Body)
	if err != nil {
		return "", err
	}
	if len(parts) != 2 || strings.TrimSpace(string(parts[0])) != strings.TrimSpace(text) {
		return "", fmt.Errorf("expected 2 parts, the first %q, got %d, %q", text, len(parts), parts)
	}
	if got, sent := sha256.Sum256(parts[1]), sha256.Sum256(attachment()); got != sent {
		return "", fmt.Errorf("expected an attachment with SHA-256 %x, got %x", sent, got)
	}
	return fmt.Sprintf("bob has it: the text reads %q, and the attachment has the SHA-256 it had, %.8x…",
		strings.TrimSpace(string(parts[0])), sha256.Sum256(parts[1])), nil
}

// readParts decodes the parts of a multipart body.
func readParts(contentType string, body io.Reader) ([][]byte, error) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, err
	}
	var parts [][]byte
	for r := multipart.NewReader(body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return parts, nil
		}
		if err != nil {
			return nil, err
		}
		var dec io.Reader = p
		switch strings.ToLower(p.Header.Get("Content-Transfer-Encoding")) {
		case "base64":
			dec = base64.NewDecoder(base64.StdEncoding, p)
		case "quoted-printable":
			dec = quotedprintable.NewReader(p)
		}
		b, err := io.ReadAll(dec)
		if err != nil {
			return nil, err
		}
		parts = append(parts, b)
	}
}

func (d *demo) backAsABounce() error {
	err := d.step("a", `printf 'Subject: are you there?\n\nHello?\n' | msend -f alice@a.test nobody@b.test`, func(out string) (string, error) {
		if out != "" {
			return "", fmt.Errorf("expected silence, got %q", out)
		}
		return "a mail to a user b.test does not have is taken, and a mail for alice comes back",
			within(func() error { _, err := d.onlyMail("a", "alice@a.test"); return err })
	})
	if err != nil {
		return err
	}
	return d.step("a", "cat $PP_MAILDIRS/a.test/alice/new/*", func(out string) (string, error) {
		m, err := mail.ReadMessage(strings.NewReader(out))
		if err != nil {
			return "", err
		}
		kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
		if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
			return "", fmt.Errorf("expected multipart/report of delivery-status, got %s %v: %w", kind, params, err)
		}
		if m.Header.Get("Return-Path") != "<>" {
			return "", fmt.Errorf("expected a null reverse-path, got %q", m.Header.Get("Return-Path"))
		}
		parts, err := readParts(m.Header.Get("Content-Type"), m.Body)
		if err != nil {
			return "", err
		}
		if len(parts) != 3 {
			return "", fmt.Errorf("expected a text, a status and the message, got %d parts", len(parts))
		}
		return "alice has a report with null reverse-path: Action failed, Status 5.1.1, and what b.test said",
			errors.Join(want(string(parts[1]), "Action: failed", "Status: 5.1.1", "rfc822; nobody@b.test", "Diagnostic-Code: smtp; 550"),
				want(string(parts[2]), "are you there?"))
	})
}

func (d *demo) throughAnOutage() error {
	err := d.step("", "sandbox down b", func(string) (string, error) {
		if c, err := net.Dial("tcp", d.addr(hostB)); err == nil {
			c.Close()
			return "", fmt.Errorf("expected nobody at %s, got a connection", d.addr(hostB))
		}
		return "host b.test is down: " + d.addr(hostB) + " refuses", nil
	})
	if err != nil {
		return err
	}
	var id string
	err = d.step("a", `printf 'Subject: for later\n\nRead this when you are back.\n' | msend --print-id -f alice@a.test bob@b.test`, func(out string) (string, error) {
		id = strings.TrimSpace(out)
		return "a mail to bob is queued as " + id, within(func() error { return d.waiting("a", id) })
	})
	if err != nil {
		return err
	}
	err = d.step("a", "mqueue list", func(out string) (string, error) {
		return "the queue holds it and nothing else", errors.Join(want(out, id, "bob@b.test"), d.waiting("a", id))
	})
	if err != nil {
		return err
	}
	err = d.step("a", "mqueue explain "+id, func(out string) (string, error) {
		return "explain names the recipient, both hosts that were tried, and why each failed",
			want(out, "bob@b.test", "deferred", "dead.b.test", "mx.b.test", "refused")
	})
	if err != nil {
		return err
	}
	err = d.step("", "sandbox up b", func(string) (string, error) {
		greeting, err := d.greeting(hostB)
		return "host b.test is back on the same port: " + strconv.Quote(greeting), err
	})
	if err != nil {
		return err
	}
	return d.step("a", "mqueue flush", func(string) (string, error) {
		err := within(func() error {
			mails, err := d.mails("b", "bob@b.test")
			if err != nil || len(mails) != 2 {
				return fmt.Errorf("expected 2 mails of bob, got %d: %w", len(mails), err)
			}
			for _, m := range mails {
				if strings.Contains(m, "Read this when you are back.") {
					return d.empty("a")
				}
			}
			return errors.New("expected the mail of the outage in bob's Maildir, got others")
		})
		return "the mail is in bob's Maildir, once, beside the first, and the queue of a is empty", err
	})
}

func (d *demo) end() error {
	var pids []int
	for _, h := range []string{"a", "b"} {
		p, err := d.pids(h)
		if err != nil {
			return err
		}
		pids = append(pids, p...)
	}
	return d.step("", "sandbox down a && sandbox down b", func(out string) (string, error) {
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil {
				return "", fmt.Errorf("expected no process left, got pid %d", pid)
			}
		}
		return fmt.Sprintf("both hosts are down, none of their %d processes is left", len(pids)), nil
	})
}
