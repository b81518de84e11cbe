package milter

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/emersion/go-milter"
)

// filter is a scripted milter: it writes down what it is told and answers by a function.
type filter struct {
	addr    string
	version uint32
	want    uint32 // actions it asks for
	steps   uint32
	// answer makes the packets for a command; nil is silence. "" is continue.
	answer func(code byte, data string) []string

	mu  sync.Mutex
	log []string
}

func (f *filter) heard() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.log, "\n")
}

func newFilter(t *testing.T, f *filter) *filter {
	t.Helper()
	f.addr = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); f.serve(c) })
		}
	})
	if f.version == 0 {
		f.version = 6
	}
	return f
}

func packet(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func (f *filter) serve(c net.Conn) {
	for {
		var n [4]byte
		if _, err := io.ReadFull(c, n[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(n[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		code, data := b[0], string(b[1:])
		f.mu.Lock()
		f.log = append(f.log, fmt.Sprintf("%c %q", code, data))
		f.mu.Unlock()
		switch code {
		case 'O':
			neg := "O" + string(binary.BigEndian.AppendUint32(nil, f.version)) +
				string(binary.BigEndian.AppendUint32(nil, f.want)) + string(binary.BigEndian.AppendUint32(nil, f.steps))
			if _, err := c.Write(packet(neg)); err != nil {
				return
			}
			continue
		case 'D', 'A':
			continue
		case 'Q':
			return
		}
		out := []string{"c"}
		if f.answer != nil {
			out = f.answer(code, data)
		}
		for _, p := range out {
			if _, err := c.Write(packet(p)); err != nil {
				return
			}
		}
	}
}

func (f *filter) client(t *testing.T, timeout time.Duration) *Client {
	t.Helper()
	c, err := New(Options{Address: "unix:" + f.addr, Hostname: "mx.home.test", Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var stranger = Peer{Addr: netip.MustParseAddrPort("192.0.2.7:4711"), Helo: "c.test", TLS: "TLSv1.3", Suite: "TLS_X", User: "ann@home.test"}

const header = "Subject: x\nX-Fold: a\n\tb\nno field\nEmpty:\n\n"

func send(t *testing.T, s *Session) (Reply, []Change, error) {
	t.Helper()
	return s.Message(context.Background(), Message{ID: "1k", Header: []byte(header), Body: strings.NewReader("line\n.\nend")})
}

func TestConversation(t *testing.T) {
	f := newFilter(t, &filter{want: 0x1ff, answer: func(code byte, _ string) []string {
		if code != 'E' {
			return []string{"c"}
		}
		idx := func(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }
		return []string{
			"p", "hX-Added\x00one\n\ttwo\x00", "i" + idx(1) + "X-Top\x00t\x00", "m" + idx(2) + "Received\x00\x00",
			"+<new@home.test>\x00", "-<ann@home.test>\x00", "e<other@home.test>\x00", "qlooks odd\x00", "p", "a",
		}
	}})
	s, err := f.client(t, 10*time.Second).Open(context.Background(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for i := range 2 { // the second message of a connection begins with MAIL
		if r, err := s.Begin(ctx, "x@far.test", []string{"SIZE=9"}); err != nil || r.Action != Continue {
			t.Fatal(i, r, err)
		}
		if r, err := s.Rcpt(ctx, "ann@home.test", nil); err != nil || r.Action != Continue {
			t.Fatal(i, r, err)
		}
		r, changes, err := send(t, s)
		if err != nil || r.Action != Accept {
			t.Fatal(i, r, err)
		}
		want := []Change{
			{AddHeader, 0, "X-Added", " one\n\ttwo"}, {InsertHeader, 1, "X-Top", " t"}, {ChangeHeader, 2, "Received", ""},
			{AddRcpt, 0, "", "<new@home.test>"}, {DeleteRcpt, 0, "", "<ann@home.test>"},
			{ChangeFrom, 0, "", "<other@home.test>"}, {Quarantine, 0, "", "looks odd"},
		}
		if fmt.Sprint(changes) != fmt.Sprint(want) {
			t.Errorf("changes %v, want %v", changes, want)
		}
	}
	s.Close()
	once := `D "Cj\x00mx.home.test\x00{daemon_name}\x00msmtpd\x00v\x00Pennypost\x00_\x00[192.0.2.7]\x00"
C "[192.0.2.7]\x004\x12g192.0.2.7\x00"
D "H{tls_version}\x00TLSv1.3\x00{cipher}\x00TLS_X\x00"
H "c.test\x00"
`
	each := `D "M{mail_addr}\x00x@far.test\x00{auth_type}\x00SASL\x00{auth_authen}\x00ann@home.test\x00"
M "<x@far.test>\x00SIZE=9\x00"
D "R{rcpt_addr}\x00ann@home.test\x00"
R "<ann@home.test>\x00"
D "Li\x001k\x00"
L "Subject\x00x\x00"
L "X-Fold\x00a\n\tb\x00"
L "Empty\x00\x00"
D "Ni\x001k\x00"
N ""
B "line\r\n.\r\nend"
D "Ei\x001k\x00"
E ""
`
	_, got, _ := strings.Cut(f.heard(), "\n") // without the negotiation
	got = strings.TrimSuffix(got, "\nQ \"\"") + "\n"
	if got != once+each+each && got != once+each+each+"A \"\"\n" {
		t.Errorf("told:\n%s\nwant:\n%s", got, once+each+each)
	}
}

func TestLeadingSpaceAndSteps(t *testing.T) {
	// HDR_LEADSPC, no body, no answer to header fields.
	f := newFilter(t, &filter{steps: 1<<20 | 0x10 | 0x80, answer: func(code byte, _ string) []string {
		switch code {
		case 'L':
			return nil
		case 'E':
			return []string{"hX-A\x00 v\x00", "c"}
		}
		return []string{"c"}
	}})
	s, err := f.client(t, 10*time.Second).Open(context.Background(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Begin(context.Background(), "", nil); err != nil {
		t.Fatal(err)
	}
	_, changes, err := send(t, s)
	if err != nil || fmt.Sprint(changes) != fmt.Sprint([]Change{{AddHeader, 0, "X-A", " v"}}) {
		t.Errorf("%v %v", changes, err)
	}
	if h := f.heard(); !strings.Contains(h, `L "Subject\x00 x\x00"`) || strings.Contains(h, "B \"") || !strings.Contains(h, `M "<>\x00"`) {
		t.Errorf("told:\n%s", h)
	}
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		at     byte
		answer string
		want   Reply
		bad    string
	}{
		{at: 'M', answer: "a", want: Reply{Action: Accept}},
		{at: 'C', answer: "a", want: Reply{Action: Accept}},
		{at: 'H', answer: "r", want: Reply{Reject, 550, "5.7.1", "refused by a content filter"}},
		{at: 'R', answer: "t", want: Reply{Defer, 451, "4.7.1", "refused by a content filter for now, try again later"}},
		{at: 'L', answer: "d", want: Reply{Action: Discard}},
		{at: 'N', answer: "y554 5.7.9 100%% no\x00", want: Reply{Reject, 554, "5.7.9", "100% no"}},
		{at: 'B', answer: "y451-4.7.2 one\r\n451 4.7.2 two\x00", want: Reply{Defer, 451, "4.7.2", "one\ntwo"}},
		{at: 'E', answer: "y550 plain\x00", want: Reply{Reject, 550, "5.7.1", "plain"}},
		{at: 'E', answer: "y550 4.7.1 of the other class\x00", want: Reply{Reject, 550, "5.7.1", "of the other class"}},
		{at: 'E', answer: "y250 fine\x00", bad: "code 250"},
		{at: 'E', answer: "y5", bad: "end of message"},
		{at: 'M', answer: "s", bad: "mail: "},
		{at: 'E', answer: "z", bad: "end of message"},
		{at: 'E', answer: "bnew body", bad: "was not offered"},
		{at: 'E', answer: "hX Y\x00v\x00", bad: "cannot be made"},
		{at: 'E', answer: "m\xff\xff\xff\xffX\x00v\x00", bad: "cannot be made"},
		{at: 'E', answer: "m\x00", bad: "end of message"},
	} {
		t.Run(fmt.Sprintf("%c %q", c.at, c.answer), func(t *testing.T) {
			f := newFilter(t, &filter{answer: func(code byte, _ string) []string {
				if code == c.at {
					if strings.HasPrefix(c.bad, "was") || strings.HasPrefix(c.bad, "cannot") {
						return []string{c.answer, "c"}
					}
					return []string{c.answer}
				}
				return []string{"c"}
			}})
			s, err := f.client(t, 10*time.Second).Open(context.Background(), stranger)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			r, err := s.Begin(context.Background(), "x@far.test", nil)
			if err == nil && r.Action == Continue {
				r, err = s.Rcpt(context.Background(), "ann@home.test", nil)
			}
			if err == nil && r.Action == Continue {
				r, _, err = send(t, s)
			}
			if c.bad != "" {
				if err == nil || !strings.Contains(err.Error(), c.bad) {
					t.Errorf("%+v %v, want %s", r, err, c.bad)
				}
				return
			}
			if err != nil || r != c.want {
				t.Errorf("%+v %v, want %+v", r, err, c.want)
			}
			if c.at == 'C' || c.at == 'H' { // it stands for the whole connection
				if r, err := s.Begin(context.Background(), "y@far.test", nil); err != nil || r != c.want || strings.Contains(f.heard(), "M ") {
					t.Errorf("second transaction: %+v %v\n%s", r, err, f.heard())
				}
			}
		})
	}
}

func TestTrouble(t *testing.T) {
	silent := newFilter(t, &filter{answer: func(code byte, _ string) []string {
		if code == 'E' {
			return nil
		}
		return []string{"c"}
	}})
	s, err := silent.client(t, 100*time.Millisecond).Open(context.Background(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Begin(context.Background(), "x@far.test", nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := send(t, s); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("silence: %v", err)
	}

	// Changes without end, all within each time-out.
	many := make([]string, 200)
	for i := range many {
		many[i] = "hX\x00" + strings.Repeat("v", 100_000) + "\x00"
	}
	flood := newFilter(t, &filter{answer: func(code byte, _ string) []string {
		if code == 'E' {
			return many
		}
		return []string{"c"}
	}})
	s, err = flood.client(t, 10*time.Second).Open(context.Background(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Begin(context.Background(), "x@far.test", nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := send(t, s); err == nil || !strings.Contains(err.Error(), errTooMuch.Error()) {
		t.Errorf("flood: %v", err)
	}

	// A session that is told to end does not wait for the filter.
	wait := newFilter(t, &filter{answer: func(byte, string) []string { return nil }})
	s, err = wait.client(t, time.Hour).Open(context.Background(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := s.Begin(ctx, "x@far.test", nil); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("end: %v", err)
	}

	none, err := New(Options{Address: "unix:" + filepath.Join(t.TempDir(), "none"), Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Open(context.Background(), stranger); err == nil {
		t.Error("nobody there, and no error")
	}
}

func TestOldVersion(t *testing.T) {
	f := newFilter(t, &filter{version: 2})
	s, err := f.client(t, 10*time.Second).Open(context.Background(), Peer{Local: true, Helo: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if r, err := s.Begin(context.Background(), "x@far.test", nil); err != nil || r.Action != Continue {
		t.Fatal(r, err)
	}
	if r, _, err := send(t, s); err != nil || r.Action != Continue {
		t.Fatal(r, err)
	}
	if !strings.Contains(f.heard(), `C "localhost\x004\x00\x00127.0.0.1\x00"`) {
		t.Error(f.heard())
	}
}

func TestBigBody(t *testing.T) {
	var mu sync.Mutex
	var got bytes.Buffer
	f := newFilter(t, &filter{answer: func(code byte, data string) []string {
		if code == 'B' {
			mu.Lock()
			got.WriteString(data)
			mu.Unlock()
		}
		return []string{"c"}
	}})
	for _, asIs := range []bool{false, true} {
		got.Reset()
		s, err := f.client(t, 10*time.Second).Open(context.Background(), stranger)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Begin(context.Background(), "x@far.test", nil); err != nil {
			t.Fatal(err)
		}
		body := strings.Repeat("\n", 100_000) + strings.Repeat("x", 100_000)
		_, _, err = s.Message(context.Background(), Message{Header: []byte("\n"), Body: strings.NewReader(body), AsIs: asIs})
		want := body
		if !asIs {
			want = strings.ReplaceAll(body, "\n", "\r\n")
		}
		mu.Lock()
		if err != nil || got.String() != want {
			t.Errorf("as it is %v: %d octets, want %d: %v", asIs, got.Len(), len(want), err)
		}
		mu.Unlock()
		s.Close()
	}
}

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"inet:127.0.0.1:8891": "tcp 127.0.0.1:8891", "inet:[::1]:8891": "tcp [::1]:8891", "unix:/run/x": "unix /run/x",
		"inet:8891@127.0.0.1": "", "unix:x": "", "127.0.0.1:8891": "", "inet::8891": "", "": "",
	} {
		n, a, err := ParseAddress(in)
		if got := strings.TrimSpace(n + " " + a); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", in, got, err)
		}
	}
}

// Property: whatever a filter sends at the end of a message becomes a usable refusal, changes
// that can be written, or an error; and it comes to an end.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01c"))
	f.Add([]byte("\x00\x00\x00\x07hX\x00v\n\x00\x00\x00\x00\x01a"))
	f.Add([]byte("\x00\x00\x00\x0ay550 5.7.1\x00"))
	f.Add(append(packet("m\x00\x00\x00\x01Subject\x00\x00"), packet("y451-4.7.2 one\r\n451 4.7.2 %%\x00")...))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go func() {
			defer theirs.Close()
			neg := packet("O\x00\x00\x00\x06\x00\x00\x01\xff\x00\x0f\xf3\xff")
			go io.Copy(io.Discard, theirs)
			theirs.Write(neg)
			theirs.Write(in)
		}()
		c := &Client{o: Options{Timeout: time.Second}}
		s, err := c.over(ours)
		if err != nil {
			return
		}
		r, changes, err := send(t, s)
		if err != nil {
			return
		}
		if (r.Action == Reject || r.Action == Defer) && (r.Text == "" || r.Code/100 != 4 && r.Code/100 != 5 || r.DSN[0] != byte('0'+r.Code/100)) {
			t.Fatalf("%+v", r)
		}
		for _, ch := range changes {
			if (ch.Kind == AddHeader || ch.Kind == InsertHeader || ch.Kind == ChangeHeader) && !isName(ch.Name) {
				t.Fatalf("%+v", ch)
			}
		}
	})
}

// over is Open on a connection that is there already.
func (c *Client) over(conn net.Conn) (*Session, error) {
	g := &guarded{Conn: conn}
	g.refill(time.Now().Add(time.Second))
	s, err := wire.NewClientWithOptions("", "", wire.ClientOptions{
		Dialer: ready{g}, ReadTimeout: c.o.Timeout, WriteTimeout: c.o.Timeout, ActionMask: offered, ProtocolMask: steps,
	}).Session()
	if err != nil {
		return nil, err
	}
	return &Session{c: c, s: s, conn: g}, nil
}

type ready struct{ net.Conn }

func (r ready) Dial(string, string) (net.Conn, error) { return r.Conn, nil }

// TestClientName: a name that leads back to the address stands in place of the address in brackets,
// as with sendmail.
func TestClientName(t *testing.T) {
	for _, c := range []struct {
		peer Peer
		want string
	}{
		{Peer{Addr: stranger.Addr, Name: "mail.far.test"}, `_\x00mail.far.test [192.0.2.7]\x00"
C "mail.far.test\x004\x12g192.0.2.7\x00"`},
		{Peer{Addr: netip.MustParseAddrPort("[2001:db8::7]:4711"), Name: "six.far.test"}, `_\x00six.far.test [IPv6:2001:db8::7]\x00"
C "six.far.test\x006\x12g2001:db8::7\x00"`},
		{Peer{Addr: netip.MustParseAddrPort("[2001:db8::7]:4711")}, `_\x00[IPv6:2001:db8::7]\x00"
C "[IPv6:2001:db8::7]\x006\x12g2001:db8::7\x00"`},
		{Peer{Local: true, Name: "mail.far.test"}, `_\x00localhost\x00"
C "localhost\x004\x00\x00127.0.0.1\x00"`},
	} {
		f := newFilter(t, &filter{})
		s, err := f.client(t, 10*time.Second).Open(context.Background(), c.peer)
		if err == nil {
			_, err = s.Begin(context.Background(), "x@far.test", nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		f.mu.Lock()
		log := strings.Join(f.log, "\n")
		f.mu.Unlock()
		if !strings.Contains(log, c.want) {
			t.Errorf("want %s in\n%s", c.want, log)
		}
	}
}
