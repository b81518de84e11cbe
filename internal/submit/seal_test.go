package submit

import (
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/spool"
)

// sealed runs a message through a filter that may change it, over a real spool, and returns
// what the scheduler would take.
func sealed(t *testing.T, in, eol string, edit func(*Sealed) error) (env *envelope.Envelope, text string, err error) {
	t.Helper()
	dir := t.TempDir()
	if err := spool.Init(dir); err != nil {
		t.Fatal(err)
	}
	sp, err := spool.Open(dir, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer sp.Close()
	s := New(Options{Spool: sp, Hostname: "host.test", Now: func() time.Time { return fixed }, MaxSize: 1 << 20})
	e := &envelope.Envelope{From: "ann@host.test", To: []envelope.Recipient{{Addr: "bob@host.test"}}, EOL: eol}
	m, err := s.Begin(e, Fixup{Trace: &Trace{From: "c.test", With: "ESMTP"}, AddMessageID: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Write([]byte(in)); err != nil {
		t.Fatal(err)
	}
	v, err := m.Seal()
	if err != nil {
		t.Fatal(err)
	}
	id := v.ID()
	if !spool.ValidID(id) {
		t.Errorf("id %q before the commit", id)
	}
	if err := edit(v); err != nil {
		if m.Abort() != nil {
			t.Error("abort failed")
		}
		left, _ := filepath.Glob(filepath.Join(dir, "incoming", "*"))
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		return nil, "", err
	}
	got, err := m.Commit()
	if err != nil || got != id {
		t.Fatalf("commit: %q %v, want %q", got, err, id)
	}
	q, err := sp.Lock(false)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	msg, err := q.Take(id)
	if err != nil {
		t.Fatal(err)
	}
	defer msg.Close()
	b := make([]byte, msg.Size)
	if _, err := msg.File.ReadAt(b, msg.Offset); err != nil {
		t.Fatal(err)
	}
	return msg.Env, string(b), nil
}

func TestSeal(t *testing.T) {
	bodies := map[string]string{
		"small": "text\n",
		"big":   strings.Repeat("a line of a body that is far longer than the hold\n", 4000),
	}
	for name, body := range bodies {
		for _, eol := range []string{envelope.EOLLF, envelope.EOLWire} {
			t.Run(name+", "+eol, func(t *testing.T) {
				nl := "\n"
				in := "Subject: x\nX-Old: 1\n\n" + body
				if eol == envelope.EOLWire {
					nl = "\r\n"
					in, body = strings.ReplaceAll(in, "\n", nl), strings.ReplaceAll(body, "\n", nl)
				}
				look := func(v *Sealed) {
					h := string(v.Header())
					if !strings.HasPrefix(h, "Message-ID: <"+v.ID()+"@host.test>\n") || !strings.HasSuffix(h, "\nSubject: x\nX-Old: 1\n\n") {
						t.Errorf("header %q", h)
					}
					r, err := v.Body()
					if err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(r)
					if err != nil || string(b) != body || r.Close() != nil {
						t.Errorf("body of %d octets, want %d: %v", len(b), len(body), err)
					}
				}
				trace := "Received: from c.test" + nl + "\tby host.test with ESMTP" + nl + "\tid "
				_, text, err := sealed(t, in, eol, func(v *Sealed) error { look(v); return nil })
				if err != nil || !strings.HasPrefix(text, trace) || !strings.HasSuffix(text, nl+nl+body) || !strings.Contains(text, nl+"X-Old: 1"+nl+nl) {
					t.Errorf("unchanged: %v %.300q", err, text)
				}
				env, text, err := sealed(t, in, eol, func(v *Sealed) error {
					look(v)
					v.Envelope().To = append(v.Envelope().To, envelope.Recipient{Addr: "eve@host.test"})
					if err := v.Rewrite([]byte("X-First: 1\nSubject: x\n\n")); err != nil {
						return err
					}
					v.Envelope().Quarantine = "looks odd"
					return v.Rewrite([]byte("X-New: 1\nSubject: x\n\n"))
				})
				if err != nil {
					t.Fatal(err)
				}
				if !strings.HasPrefix(text, trace) || !strings.HasSuffix(text, nl+"X-New: 1"+nl+"Subject: x"+nl+nl+body) || strings.Contains(text, "X-First") {
					t.Errorf("changed: %.300q", text)
				}
				if len(env.To) != 2 || env.Quarantine != "looks odd" || !spool.NewState(env).Hold {
					t.Errorf("envelope %+v", env)
				}
				no := errors.New("no")
				if _, _, err := sealed(t, in, eol, func(*Sealed) error { return no }); !errors.Is(err, no) {
					t.Error(err)
				}
			})
		}
	}
}

func TestSealLimits(t *testing.T) {
	if _, _, err := sealed(t, "Subject: x\n\ny\n", envelope.EOLLF, func(v *Sealed) error {
		return v.Rewrite([]byte("X: " + strings.Repeat("x", maxHeader) + "\n\n"))
	}); !errors.Is(err, ErrHeader) {
		t.Errorf("a header without end: %v", err)
	}
	if _, _, err := sealed(t, "Subject: x\n\ny\n", envelope.EOLLF, func(v *Sealed) error {
		v.Envelope().To = nil
		return v.Rewrite(v.Header())
	}); !errors.Is(err, ErrNoRecipients) {
		t.Errorf("nobody left: %v", err)
	}
}
