package service

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"pennypost/internal/auth"
	"pennypost/internal/password"
	"pennypost/internal/sasl"
)

func TestRecords(t *testing.T) {
	for _, m := range []string{auth.SCRAMSHA256, auth.SCRAMSHA1} {
		r, err := NewRecord(m, "correct horse")
		if err != nil {
			t.Fatal(err)
		}
		keys, ok := strings.CutPrefix(r, "{"+m+"}65536,")
		if !ok {
			t.Errorf("%s", r)
		}
		for pw, want := range map[string]bool{"correct horse": true, "correct  horse": false, "": false, strings.Repeat("x", 2000): false} {
			if ok, err := checkRecord(m, "65536,"+keys, pw); ok != want || err != nil {
				t.Errorf("%s %.20q: %v %v", m, pw, ok, err)
			}
		}
	}
	// Made by doveadm pw, which also verifies ours.
	for m, r := range map[string]string{
		auth.SCRAMSHA256: "4096,D0/i5LUo66iVDCoUf3shvg==,JbNixF1nJ3hI9cAZhhv+PdQew1vhjKXsp6ssJ8tCpUQ=,PeIObUSpJdO53JO6RGNW724xc+3dsxaOa0FSNn9vDGo=",
		auth.SCRAMSHA1:   "4096,FjMGpbpamhh5dGcdHifdRA==,cWA46IBpDVxLaLoH6eTHwKqjavw=,U4kYBzA7rXoFAgv9BzUuwgTfJIc=",
	} {
		if ok, err := checkRecord(m, r, "secret"); !ok || err != nil {
			t.Errorf("%s: %v %v", m, ok, err)
		}
	}
	// RFC 4013 §3: a soft hyphen is nothing, a compatibility character is what it stands for.
	r, err := NewRecord(auth.SCRAMSHA256, "IX\u00aa")
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := checkRecord(auth.SCRAMSHA256, strings.TrimPrefix(r, "{SCRAM-SHA-256}"), "I\u00adXa"); !ok || err != nil {
		t.Errorf("SASLprep: %v %v", ok, err)
	}
	for name, c := range map[string][2]string{
		"control character": {auth.SCRAMSHA256, "a\x07b"}, "with a binding": {auth.SCRAMSHA256Plus, "x"}, "unknown": {"SCRAM-MD5", "x"},
	} {
		if _, err := NewRecord(c[0], c[1]); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	for _, s := range []string{
		"", "4096,c2FsdA==,AA==,AA==", "x,W22Z,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
		"9999999,W22Z,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
		"4096,,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
		"4096,W22Z,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,not base64",
	} {
		if _, err := checkRecord(auth.SCRAMSHA256, s, "pencil"); !errors.Is(err, password.ErrScheme) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// What a client may send instead of a proper exchange.
func TestHostileExchange(t *testing.T) {
	channel := auth.Binding{Type: "tls-exporter", Data: []byte("key")}
	both(t, files, func(t *testing.T, _ *rig, c auth.Checker) {
		for _, q := range []struct {
			name, mech string
			b          auth.Binding
			says       []string
			err        error
		}{
			{"no message", auth.SCRAMSHA256, auth.Binding{}, []string{""}, sasl.ErrSyntax},
			{"no message at all", auth.SCRAMSHA256, auth.Binding{}, []string{"hello"}, sasl.ErrSyntax},
			{"extension", auth.SCRAMSHA256, auth.Binding{}, []string{"n,,m=x,n=carol,r=abc"}, sasl.ErrSyntax},
			{"too long", auth.SCRAMSHA256, auth.Binding{}, []string{"n,,n=carol,r=" + strings.Repeat("r", 5000)}, sasl.ErrSyntax},
			// RFC 5802 §6: the client supports a binding and was told that the server does not.
			{"downgrade", auth.SCRAMSHA256, channel, []string{"y,,n=carol,r=abc"}, sasl.ErrRefused},
			{"wrong kind of binding", auth.SCRAMSHA256Plus, channel, []string{"p=tls-unique,,n=carol,r=abc"}, sasl.ErrRefused},
			{"binding without one", auth.SCRAMSHA256, auth.Binding{}, []string{"p=tls-exporter,,n=carol,r=abc"}, sasl.ErrRefused},
			{"another identity", auth.SCRAMSHA256, auth.Binding{}, []string{"n,a=bob@example.test,n=carol,r=abc"}, sasl.ErrRefused},
			{"bad escape", auth.SCRAMSHA256, auth.Binding{}, []string{"n,,n=car=ol,r=abc"}, sasl.ErrRefused},
			{"another nonce", auth.SCRAMSHA256, auth.Binding{}, []string{"n,,n=carol,r=abc", "c=biws,r=abc,p=AAAA"}, sasl.ErrRefused},
			{"no proof", auth.SCRAMSHA256, auth.Binding{}, []string{"n,,n=carol,r=abc", "c=biws,r=abc"}, sasl.ErrSyntax},
		} {
			s, err := c.SCRAM(ctxTODO, auth.Exchange{Mechanism: q.mech, Binding: q.b, From: home})
			if err != nil {
				t.Fatal(err)
			}
			for i, m := range q.says {
				_, done, err := s.Next(ctxTODO, []byte(m))
				if done || i == len(q.says)-1 && !errors.Is(err, q.err) || i < len(q.says)-1 && err != nil {
					t.Errorf("%s, message %d: %v %v, want %v", q.name, i+1, done, err, q.err)
				}
			}
			if s.User() != "" || s.Ticket() != "" {
				t.Errorf("%s: user %q", q.name, s.User())
			}
			s.Close()
		}
		if _, err := c.SCRAM(ctxTODO, auth.Exchange{Mechanism: "PLAIN"}); !errors.Is(err, sasl.ErrSyntax) {
			t.Errorf("PLAIN as SCRAM: %v", err)
		}
	})
}

// What somebody without an account is told has the form, and stays the same, as for one with.
func TestNobodyLooksLikeSomebody(t *testing.T) {
	r := newRig(t, strings.Split(files, "\n")[3]+"\n"+strings.ReplaceAll(files, "{PLAIN}", "{SHA1}"), nil)
	first := func(login string) string {
		s, err := r.SCRAM(ctxTODO, auth.Exchange{Mechanism: auth.SCRAMSHA256, From: home})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		b, _, err := s.Next(ctxTODO, []byte("n,,n="+login+",r=abc"))
		if err != nil {
			t.Fatalf("%s: %v", login, err)
		}
		_, after, _ := strings.Cut(string(b), ",s=")
		return after
	}
	one, two, known := first("dora"), first("dora"), first("bob")
	if one != two {
		t.Errorf("told by asking twice: %s %s", one, two)
	}
	if len(one) != len(known) || !strings.HasSuffix(one, ",i=4096") || one == first("eve") {
		t.Errorf("nobody %s, somebody %s", one, known)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add("4096,W22ZaJ0SNY7soEsUEjb6gQ==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=")
	f.Add("1,,,")
	f.Fuzz(func(t *testing.T, s string) {
		for _, h := range []scram.HashGeneratorFcn{scram.SHA1, scram.SHA256} {
			if c, err := parseRecord(h, s); err == nil && printRecord(c) != s {
				t.Fatalf("%q is printed %q", s, printRecord(c))
			}
		}
	})
}

// FuzzExchange sends two messages of a client: no panic, and nobody gets in.
func FuzzExchange(f *testing.F) {
	f.Add("n,,n=carol,r=abc", "c=biws,r=abc,p=AAAA")
	f.Add("p=tls-exporter,a=x,n=carol,r=abc", "c=,r=,p=")
	f.Add("y,,n=a=2Cb,r=", ",,,")
	r := newRig(f, "", nil)
	f.Fuzz(func(t *testing.T, one, two string) {
		s, err := r.SCRAM(ctxTODO, auth.Exchange{Mechanism: auth.SCRAMSHA256Plus, Binding: auth.Binding{Type: "tls-exporter", Data: []byte("k")}, From: home})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []string{one, two, ""} {
			if _, done, _ := s.Next(ctxTODO, []byte(m)); done || s.User() != "" {
				t.Fatalf("%q %q let %q in", one, two, s.User())
			}
		}
	})
}

// FuzzTable reads slots that anything may have written: no panic, and never a longer wait than any.
func FuzzTable(f *testing.F) {
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), int64(1_800_000_000_000))
	f.Add([]byte{}, int64(-1))
	f.Fuzz(func(t *testing.T, b []byte, ms int64) {
		tb := &table{mem: make([]byte, tableSize)}
		now := time.UnixMilli(ms % (1 << 45))
		l := &limits{table: tb, now: func() time.Time { return now }}
		g := guess{account: "a@x.test", from: network(netip.MustParseAddr("192.0.2.1"))}
		for _, tag := range [][16]byte{tb.tag("pair", g.account+"\x00"+g.from.String()), tb.tag("account", g.account), tb.tag("network", g.from.String())} {
			if err := tb.update(now, [][16]byte{tag}, func(s []*slot) {
				raw := make([]byte, slotSize)
				copy(raw[16:], b)
				copy(raw, tag[:])
				s[0].decode(raw)
			}); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			if wait, err := l.begin(&g); err == nil && (wait < 0 || wait > maxWait) {
				t.Fatalf("wait %v", wait)
			}
			l.failed(g, [16]byte{1})
			if !l.repeated(g, [16]byte{1}) {
				t.Fatal("not remembered")
			}
		}
		l.succeeded(g)
	})
}
