package smtp

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"pennypost/internal/envelope"
)

func TestParseReply(t *testing.T) {
	for _, c := range []struct {
		name, in, want string // want "" is an error
	}{
		{"one line", "250 2.1.0 ok\r\n", "250 2.1.0 ok"},
		{"lone LF", "250 ok\n", "250 ok"},
		{"code only", "250\r\n", "250"},
		{"code and space", "250 \r\n", "250"},
		{"several lines", "550-5.7.1 you are\r\n550-5.7.1 not\r\n550 5.7.1 welcome\r\n", "550 5.7.1 you are not welcome"},
		{"enhanced code of another class", "550 2.1.1 odd\r\n", "550 2.1.1 odd"},
		{"enhanced code that is none", "550 5.1.01 odd\r\n", "550 5.1.01 odd"},
		{"enhanced code on the second line only", "250-a\r\n250 2.0.0 b\r\n", "250 a 2.0.0 b"},
		{"control characters", "250 a\x00b\x1b[31m\u0085\r\n", "250 a?b?[31m?"},
		{"not UTF-8", "250 caf\xe9\r\n", "250 caf?"},
		{"UTF-8", "250 café\r\n", "250 café"},
		{"long line", "250 " + strings.Repeat("x", 4000) + "\r\n", "250 " + strings.Repeat("x", 4000)},
		{"two codes in one reply", "250-a\r\n550 b\r\n", ""},
		{"first digit 1", "150 wait\r\n", ""},
		{"first digit 6", "650 wait\r\n", ""},
		{"letters", "hello\r\n", ""},
		{"nothing", "\r\n", ""},
		{"wrong separator", "250_ok\r\n", ""},
		{"line without end", strings.Repeat("2", 5000), ""},
		{"over-long line", "250 " + strings.Repeat("x", 5000) + "\r\n", ""},
		{"lines without end", strings.Repeat("250-x\r\n", 300), ""},
		{"cut", "250-x\r\n", ""},
	} {
		r, err := ParseReply(bufio.NewReaderSize(strings.NewReader(c.in), 64))
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%s: taken as %q", c.name, r)
		case c.want == "" && !errors.Is(err, ErrReply) && !errors.Is(err, io.EOF):
			t.Errorf("%s: error %v is no ErrReply", c.name, err)
		case c.want != "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && r.String() != c.want:
			t.Errorf("%s: got %q, want %q", c.name, r, c.want)
		}
	}
}

func TestReplyStatus(t *testing.T) {
	for _, c := range []struct {
		stage   Stage
		reply   string
		verdict envelope.Verdict
		code    string
	}{
		{StageRcpt, "550 5.1.1 no such user", envelope.Failed, "5.1.1"},
		{StageRcpt, "550 no such user", envelope.Failed, "5.1.0"},
		{StageRcpt, "550 4.1.1 class differs", envelope.Failed, "5.1.0"},
		{StageRcpt, "450 4.2.1 busy", envelope.Deferred, "4.2.1"},
		{StageRcpt, "450 busy", envelope.Deferred, "4.2.0"},
		{StageRcpt, "452 too many", envelope.Deferred, "4.5.3"},
		{StageMail, "452 disk full", envelope.Deferred, "4.3.1"},
		{StageMail, "552 too large", envelope.Failed, "5.3.4"},
		{StageRcpt, "552 quota", envelope.Failed, "5.2.2"},
		{StageDone, "554 spam", envelope.Failed, "5.0.0"},
		{StageDone, "451 later", envelope.Deferred, "4.3.0"},
		{StageMail, "421 bye", envelope.Deferred, "4.3.2"},
		{StageMail, "530 authenticate", envelope.Failed, "5.7.0"},
		{StageRcpt, "556 null MX", envelope.Failed, "5.1.10"},
		{StageRcpt, "499 what", envelope.Deferred, "4.0.0"},
	} {
		r, err := ParseReply(bufio.NewReader(strings.NewReader(c.reply + "\r\n")))
		if err != nil {
			t.Fatal(err)
		}
		st := replyStatus(c.stage, r)
		if st.Verdict != c.verdict || st.Code != c.code || !st.Remote || st.Reply != c.reply {
			t.Errorf("%s at %s: %+v, want %s %s", c.reply, c.stage, st, c.verdict, c.code)
		}
	}
}

// Every basic code and stage gives a valid enhanced code of its class.
func TestReplyCodesAreValid(t *testing.T) {
	for stage := StageConnect; stage <= StageDone; stage++ {
		for code := 400; code < 600; code++ {
			if e := replyCode(stage, code); !envelope.ValidCode(e) || int(e[0]-'0') != code/100 {
				t.Errorf("%d at %s gives %q", code, stage, e)
			}
		}
	}
}

func TestParseAbilities(t *testing.T) {
	r, err := ParseReply(bufio.NewReader(strings.NewReader("250-mx.test hello\r\n250-Pipelining\r\n250-SIZE 1000\r\n250-8BITMIME\r\n" +
		"250-AUTH=LOGIN\r\n250-AUTH plain LOGIN\r\n250-X-ODD thing\r\n250 STARTTLS\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	a := ParseAbilities(r)
	if !a.Pipelining || !a.EightBit || !a.Size || a.MaxSize != 1000 || !a.StartTLS || a.UTF8 || a.DSN {
		t.Errorf("got %+v", a)
	}
	if !a.Auth("PLAIN") || !a.Auth("LOGIN") || a.Auth("CRAM-MD5") || len(a.auth) != 2 {
		t.Errorf("AUTH: %q", a.auth)
	}
	for _, size := range []string{"", " 0", " -1", " x", " 99999999999999999999"} {
		a := ParseAbilities(&Reply{Code: 250, Lines: []string{"h", "SIZE" + size}})
		if !a.Size || a.MaxSize != 0 {
			t.Errorf("SIZE%s: %+v", size, a)
		}
	}
	for params, want := range map[string]time.Duration{"": 0, " 240": 240 * time.Second, " 30,X": 30 * time.Second, " ,X": 0, " -1": 0} {
		a := ParseAbilities(&Reply{Code: 250, Lines: []string{"h", "DELIVERBY" + params, "MT-PRIORITY MIXER"}})
		if !a.DeliverBy || a.MinBy != want || !a.Priority {
			t.Errorf("DELIVERBY%s: %+v", params, a)
		}
	}
	for params, want := range map[string][2]int{
		"": {}, " RCPTMAX=20 MAILMAX=5": {5, 20}, " rcptmax=1 X=7": {0, 1}, " RCPTMAX=0 MAILMAX=-1": {}, " RCPTMAX=1000000 MAILMAX=x": {},
	} {
		a := ParseAbilities(&Reply{Code: 250, Lines: []string{"h", "LIMITS" + params}})
		if a.MaxMails != want[0] || a.MaxRcpts != want[1] {
			t.Errorf("LIMITS%s: %+v", params, a)
		}
	}
	// The greeting line is a host's name, whatever it looks like.
	if a := ParseAbilities(&Reply{Code: 250, Lines: []string{"PIPELINING"}}); a.Pipelining {
		t.Error("the first line counts as an ability")
	}
}

func FuzzParseReply(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "250-a\r\n250 2.0.0 b\r\n", "550-5.1.1 x\n550 5.1.1 y\n", "421", "\x00\xff\r\n", "250-\r\n250\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := ParseReply(bufio.NewReaderSize(strings.NewReader(string(in)), 16))
		if err != nil {
			return
		}
		if r.Code < 200 || r.Code > 599 || len(r.Lines) == 0 || len(r.Lines) > replyMaxLines {
			t.Fatalf("%q: %+v", in, r)
		}
		s := r.String()
		if strings.ContainsAny(s, "\r\n\x00\x1b") {
			t.Fatalf("control characters in %q", s)
		}
		again, err := ParseReply(bufio.NewReaderSize(strings.NewReader(s+"\r\n"), 16))
		if len(s) > replyMaxLine-2 {
			return
		}
		if err != nil || again.Code != r.Code || again.Enhanced != r.Enhanced && r.Enhanced != "" {
			t.Fatalf("%q printed as %q reads as %+v, %v", in, s, again, err)
		}
	})
}

func FuzzParseAbilities(f *testing.F) {
	f.Add("h\r\nPIPELINING\r\nSIZE 100\r\nAUTH PLAIN LOGIN\r\nAUTH=CRAM-MD5")
	f.Add("h\r\nsize\r\n 8bitmime \r\nAUTH\r\nAUTH=")
	f.Fuzz(func(t *testing.T, in string) {
		a := ParseAbilities(&Reply{Code: 250, Lines: strings.Split(in, "\r\n")})
		if a.MaxSize < 0 || len(a.auth) > len(in) {
			t.Fatalf("%q: %+v", in, a)
		}
		for _, m := range a.auth {
			if m == "" || strings.ToUpper(m) != m || !a.Auth(m) {
				t.Fatalf("%q: mechanism %q", in, m)
			}
		}
	})
}

func TestTranscriptIsBounded(t *testing.T) {
	var s clientScript
	s.add("C: ", "EHLO x")
	s.begin(true)
	for i := range 5000 {
		s.add("C: ", "RCPT TO:<somebody-or-other@example.test>")
		s.reply(&Reply{Code: 250, Enhanced: "2.1.5", Lines: []string{strings.Repeat("k", i%2000)}})
	}
	s.add("C: ", "the last")
	l := s.lines()
	n := 0
	for _, x := range l {
		n += len(x) + 1
	}
	if n > scriptHead+scriptTail+100 || l[0] != "C: EHLO x" || l[len(l)-1] != "C: the last" {
		t.Errorf("%d octets, first %q, last %q", n, l[0], l[len(l)-1])
	}
	for _, x := range l {
		if !strings.HasPrefix(x, "C: ") && !strings.HasPrefix(x, "S: 250 2.1.5 ") && x != "(...)" {
			t.Errorf("half a line: %q", x)
		}
	}
	s.begin(false)
	if got := strings.Join(s.lines(), "|"); got != "C: EHLO x|(connection used again)" {
		t.Errorf("after begin: %q", got)
	}
}
