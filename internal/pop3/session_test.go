package pop3

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"pennypost/internal/handover"
	"pennypost/internal/login"
	"pennypost/internal/mailbox"
	"pennypost/internal/mailtest"
)

// converse sends everything at once and returns all that comes back until the server hangs up.
func converse(t testing.TB, c net.Conn, text string) string {
	t.Helper()
	go func() { _, _ = io.WriteString(c, text) }() // a server that hangs up has not read it all
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

const loginLines = "USER alice\r\nPASS se cret\r\n"

// TestSTLS: nothing that came in clear behind STLS is run, and nothing said before it counts.
func TestSTLS(t *testing.T) {
	s, log := testServer(t, newDrop(t, messages...))
	c, _ := connect(t, t.Context(), s, network)
	if _, err := io.WriteString(c, "CAPA\r\nSTLS\r\nUSER alice\r\nCAPA\r\n"); err != nil {
		t.Fatal(err)
	}
	clear := readUntil(t, c, "+OK go ahead\r\n")
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	got := converse(t, tc, "PASS se cret\r\nSTLS\r\nCAPA\r\n"+loginLines+"STAT\r\nQUIT\r\n")
	want := "-ERR say USER first\r\n-ERR TLS is on already\r\n+OK this is"
	if !strings.HasPrefix(got, want) || strings.Contains(got, "\nSTLS\r") || !strings.Contains(got, "\nUSER\r\n") || !strings.Contains(got, "\nSASL SCRAM-SHA-256-PLUS ") {
		t.Errorf("before %q, after %q", clear, got)
	}
	if !strings.HasSuffix(got, "+OK 4 176\r\n+OK bye, 4 messages left\r\n") {
		t.Errorf("%q", got)
	}
	if strings.Contains(clear, "\nUSER\r\n") || strings.Contains(clear, "\nSASL") {
		t.Errorf("passwords in clear: %q", clear)
	}
	if !strings.Contains(log.String(), "input after STLS thrown away") {
		t.Errorf("log: %s", log)
	}
}

// readUntil reads octet by octet, so that what follows stays for TLS.
func readUntil(t *testing.T, c net.Conn, end string) string {
	t.Helper()
	var b []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(b), end); b = append(b, one[0]) {
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatalf("%v after %q", err, b)
		}
	}
	return string(b)
}

func TestImplicitTLS(t *testing.T) {
	d := newDrop(t, messages...)
	s, log := testServer(t, d)
	s.Role = TLS
	c, done := connect(t, t.Context(), s, network)
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	got := converse(t, tc, loginLines+"RETR 1\r\nRETR 4\r\nTOP 2 0\r\nDELE 4\r\nQUIT\r\n")
	if !strings.HasSuffix(got, "+OK bye, 3 messages left\r\n") {
		t.Errorf("%q", got)
	}
	<-done
	if !slices.Equal(d.removed, []uint32{4}) || !slices.Equal(d.seen, []uint32{1}) || d.locked {
		t.Errorf("removed %v, seen %v, locked %v", d.removed, d.seen, d.locked)
	}
	want := "msg=session peer=192.0.2.7:4711 user=alice@example.test role=pop3s tls=true messages=4 retr=2 top=1 dele=1 octets="
	if strings.Count(log.String(), want) != 1 || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("log: %s", log)
	}
	c, done = connect(t, t.Context(), s, network)
	if _, err := io.WriteString(c, "USER alice\r\n"); err != nil {
		t.Fatal(err)
	}
	<-done
	if !strings.Contains(log.String(), "TLS handshake") {
		t.Errorf("log: %s", log)
	}
}

// TestSCRAM logs in without the password on the wire, bound to TLS and not.
func TestSCRAM(t *testing.T) {
	for _, mech := range []string{"SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"} {
		s, _ := testServer(t, newDrop(t, messages...))
		s.Role = TLS
		c, _ := connect(t, t.Context(), s, network)
		tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		x, err := scram.SHA256.NewClient("alice", "se cret", "")
		if err != nil {
			t.Fatal(err)
		}
		conv := x.NewConversation()
		if mech == "SCRAM-SHA-256-PLUS" {
			cs := tc.ConnectionState()
			data, err := cs.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
			if err != nil {
				t.Fatal(err)
			}
			conv = x.NewConversationWithChannelBinding(scram.ChannelBinding{Type: scram.ChannelBindingTLSExporter, Data: data})
		}
		r := bufio.NewReader(tc)
		say := func(line string) string {
			if _, err := io.WriteString(tc, line+"\r\n"); err != nil {
				t.Fatal(err)
			}
			got, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSuffix(got, "\r\n")
		}
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		got := say("AUTH " + mech)
		for step := 0; strings.HasPrefix(got, "+ ") && step < 4; step++ {
			answer, err := conv.Step(string(decode64(t, got[2:])))
			if err != nil {
				t.Fatal(err)
			}
			got = say(encode64(answer))
		}
		if !strings.HasPrefix(got, "+OK welcome") || !conv.Valid() {
			t.Errorf("%s: %q, %v", mech, got, conv.Valid())
		}
	}
}

// TestEnds: the ways in which a session ends without QUIT remove nothing, give the lock back and
// keep what was seen.
func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, c net.Conn, stop func())
		last string // what the client hears after its commands
		log  string
	}{
		{"connection cut", func(_ *testing.T, c net.Conn, _ func()) { c.Close() }, "", "client is gone without QUIT"},
		{"silence", func(*testing.T, net.Conn, func()) {}, "", "client was silent for too long"},
		{"server told to stop", func(_ *testing.T, _ net.Conn, stop func()) { stop() }, "-ERR [SYS/TEMP] closing down\r\n", "server is stopping"},
		{"endless line", func(t *testing.T, c net.Conn, _ func()) {
			go func() { _, _ = io.Copy(c, strings.NewReader(strings.Repeat("x", 4<<20))) }() // until the server has had enough
		}, "-ERR too much input\r\n", "too much input to skip"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDrop(t, messages...)
			s, log := testServer(t, d)
			if c.name == "silence" {
				s.Timeout = 50 * time.Millisecond
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			conn, done := connect(t, ctx, s, stdio)
			if _, err := io.WriteString(conn, loginLines+"RETR 1\r\nDELE 1\r\nDELE 2\r\nRETR 4\r\n"); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(conn)
			for range 5 + 7 + 3 {
				if _, err := r.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			c.do(t, conn, stop)
			if rest, err := io.ReadAll(r); c.name != "connection cut" && (err != nil || string(rest) != c.last) {
				t.Errorf("heard %q, %v", rest, err)
			}
			<-done
			if len(d.removed) != 0 || !slices.Equal(d.seen, []uint32{4}) || d.locked {
				t.Errorf("removed %v, seen %v, locked %v", d.removed, d.seen, d.locked)
			}
			if !strings.Contains(log.String(), c.log) {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// writes counts writes on a connection.
type writes struct {
	net.Conn
	sizes []int
}

func (w *writes) Write(p []byte) (int, error) {
	w.sizes = append(w.sizes, len(p))
	return w.Conn.Write(p)
}

// TestOneWrite: what a client sends together is answered together; a large answer leaves in
// large pieces.
func TestOneWrite(t *testing.T) {
	big := strings.Repeat("a line of text that is of the usual length, more or less, as they are\n", 10000)
	s, _ := testServer(t, newDrop(t, "Subject: x\n\n"+big, "Subject: y\n\n"))
	client, server := net.Pipe()
	w := &writes{Conn: server}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ServeConn(t.Context(), w, stdio)
	}()
	r := bufio.NewReader(client)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(client, loginLines+strings.Repeat("STAT\r\nTOP 1 0\r\nRETR 2\r\n", 15)+"QUIT\r\n") // read below
	}()
	if _, err := io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	<-done
	if len(w.sizes) != 2 {
		t.Errorf("writes: %v", w.sizes)
	}
	client, server = net.Pipe()
	w = &writes{Conn: server}
	go s.ServeConn(t.Context(), w, stdio)
	go func() { _, _ = io.WriteString(client, loginLines+"RETR 1\r\nQUIT\r\n") }() // read below
	if _, err := io.ReadAll(client); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, n := range w.sizes[1:] {
		total += n
	}
	if total < len(big) || len(w.sizes) > 2+total/full {
		t.Errorf("%d octets in writes of %v", total, w.sizes)
	}
}

// TestMemory: a message of any size passes through the same buffers.
func TestMemory(t *testing.T) {
	d := newDrop(t, "Subject: x\n\n")
	f, err := os.OpenFile(d.path(1), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const lines = 200_000
	if _, err := io.WriteString(f, strings.Repeat(".\n", lines)); err != nil {
		t.Fatal(err)
	}
	s, _ := testServer(t, d)
	var got int64
	run := func() {
		c, _ := connect(t, t.Context(), s, stdio)
		go func() { _, _ = io.WriteString(c, loginLines+"RETR 1\r\nQUIT\r\n") }() // read below
		got, err = io.Copy(io.Discard, c)
	}
	run()
	before := testing.AllocsPerRun(1, run)
	if err != nil || got < 4*lines {
		t.Errorf("%d octets, %v", got, err)
	}
	if before > 1500 {
		t.Errorf("%v allocations for one message", before)
	}
}

// TestInUse: the second session of a user is told; after the first one's QUIT it gets in.
func TestInUse(t *testing.T) {
	s, _ := testServer(t, newDrop(t, messages...))
	mailtest.Dialogue(t, "in use", []byte(`
C: USER alice
C: PASS se cret
S* +OK welcome
C2: USER alice
C2: PASS se cret
S2* -ERR [IN-USE]
C: QUIT
S* +OK bye
C2: USER alice
C2: PASS se cret
S2* +OK welcome
`), func() net.Conn {
		c, _ := connect(t, t.Context(), s, stdio)
		return c
	})
}

// TestManyCommands: what needs no login cannot be asked for ever.
func TestManyCommands(t *testing.T) {
	s, _ := testServer(t, newDrop(t))
	c, _ := connect(t, t.Context(), s, stdio)
	got := converse(t, c, strings.Repeat("CAPA\r\n", 2*maxIdle))
	if n := strings.Count(got, "+OK this is"); n != maxIdle || !strings.HasSuffix(got, "-ERR too many commands without a login\r\n") {
		t.Errorf("%d times", n)
	}
}

// TestLongToken: an initial response may be longer than any other command.
func TestLongToken(t *testing.T) {
	s, _ := testServer(t, newDrop(t))
	token := strings.Repeat("x", 6000)
	s.Login.Token = func(_ context.Context, _, got string) (string, error) {
		if got != token {
			return "", errors.New("another token")
		}
		return "alice@example.test", nil
	}
	c, _ := connect(t, t.Context(), s, stdio)
	got := converse(t, c, fmt.Sprintf("AUTH OAUTHBEARER %s\r\nQUIT\r\n", encode64("n,a=alice@example.test,\x01auth=Bearer "+token+"\x01\x01")))
	if !strings.Contains(got, "+OK welcome, 0 messages (0 octets)\r\n") {
		t.Errorf("%q", got)
	}
}

// TestRefusedTokenIsLogged: a token that was refused is logged and answered late, however the
// client ends the exchange.
func TestRefusedTokenIsLogged(t *testing.T) {
	wrong := "AUTH OAUTHBEARER " + encode64("n,a=alice@example.test,\x01auth=Bearer other\x01\x01") + "\r\n"
	for _, c := range []struct{ name, end, answer string }{
		{"as it should", "AQ==\r\n", "-ERR [AUTH] "},
		{"empty", "\r\n", "-ERR [AUTH] "},
		{"empty to curl", "=\r\n", "-ERR [AUTH] "},
		{"cancelled", "*\r\n", "-ERR [AUTH] "},
		{"no base64", "?\r\n", "-ERR [AUTH] "},
		{"gone", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, log := testServer(t, newDrop(t))
			s.Login.Delay = 50 * time.Millisecond
			conn, done := connect(t, t.Context(), s, stdio)
			begin := time.Now()
			if _, err := io.WriteString(conn, wrong+c.end); err != nil {
				t.Fatal(err)
			}
			got := readUntil(t, conn, "+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\r\n")
			if c.answer != "" {
				got += converse(t, conn, "QUIT\r\n")
			}
			conn.Close()
			<-done
			if !strings.Contains(got, c.answer) || c.answer != "" && time.Since(begin) < s.Login.Delay {
				t.Errorf("after %v: %q", time.Since(begin), got)
			}
			if n := strings.Count(log.String(), `msg="login refused" peer=`); n != 1 || !strings.Contains(log.String(), "user=alice@example.test") {
				t.Errorf("%d lines: %s", n, log)
			}
		})
	}
}

// TestHandOver: a session that another process takes is answered by that one alone; one that it
// refuses is answered here, and the client may go on.
func TestHandOver(t *testing.T) {
	d := newDrop(t, messages...)
	s, log := testServer(t, d)
	var taken handover.Request
	s.HandOver = func(_ context.Context, conn net.Conn, user string, r handover.Request) (bool, error) {
		switch {
		case user != "alice@example.test":
			return false, nil
		case len(taken.Pending) == 0:
			taken = r
			return false, handover.ErrBusy
		}
		taken = r
		_, err := io.WriteString(conn, "+OK from elsewhere\r\n")
		return true, err
	}
	c, done := connect(t, t.Context(), s, network)
	if _, err := io.WriteString(c, "UTF8\r\nSTLS\r\n"); err != nil {
		t.Fatal(err)
	}
	readUntil(t, c, "-ERR say STLS before UTF8\r\n")
	c.Close()
	<-done
	s.ClearFrom = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	c, done = connect(t, t.Context(), s, network)
	got := converse(t, c, "UTF8\r\n"+loginLines+loginLines+"STAT\r\nQUIT\r\n")
	<-done
	if !strings.HasSuffix(got, "-ERR [SYS/TEMP] cannot open the maildrop, try again later\r\n+OK name taken, send PASS\r\n+OK from elsewhere\r\n") {
		t.Errorf("%q", got)
	}
	if string(taken.Pending) != "STAT\r\nQUIT\r\n" || taken.Protocol != "pop3" || taken.Peer != network.Addr || taken.State != (carried{UTF8: true, Role: Clear, Password: true, SASL: strings.Join(s.Login.Session(login.Client{Clear: true}).Mechanisms(), " ")}) {
		t.Errorf("handed over: %+v", taken)
	}
	if d.locked || strings.Contains(log.String(), "messages=") {
		t.Errorf("log: %s", log)
	}
	c, done = connect(t, t.Context(), s, network)
	if got := converse(t, c, "USER jürg\r\nPASS grüße\r\nQUIT\r\n"); !strings.HasSuffix(got, "+OK bye, 4 messages left\r\n") {
		t.Errorf("a user of the mail system: %q", got)
	}
	<-done
	s.HandOver = func(context.Context, net.Conn, string, handover.Request) (bool, error) {
		return false, handover.ErrLost
	}
	c, done = connect(t, t.Context(), s, network)
	if got := converse(t, c, loginLines); !strings.HasSuffix(got, "+OK name taken, send PASS\r\n") {
		t.Errorf("a session that may have begun: %q", got)
	}
	<-done
}

// TestCarriedCapabilities: RFC 2449 §3 wants what was announced before the login after it too, in
// the process that a session is handed to as well, wherever the client came from.
func TestCarriedCapabilities(t *testing.T) {
	for _, peer := range []Peer{network, {}} {
		s, _ := testServer(t, newDrop(t, messages...))
		s.ClearFrom = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
		var state []byte
		s.HandOver = func(_ context.Context, _ net.Conn, _ string, r handover.Request) (bool, error) {
			var err error
			state, err = json.Marshal(r.State)
			return true, err
		}
		c, done := connect(t, t.Context(), s, peer)
		if _, err := io.WriteString(c, "STLS\r\n"); err != nil {
			t.Fatal(err)
		}
		readUntil(t, c, "+OK go ahead\r\n")
		secure := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		before := converse(t, secure, "CAPA\r\n"+loginLines)
		<-done
		_, before, _ = strings.Cut(before, "+OK")
		before, _, _ = strings.Cut(before, ".\r\n")

		after, _ := testServer(t, newDrop(t, messages...))
		after.Login = nil // a session takes no logins
		client, server := net.Pipe()
		ended := make(chan error, 1)
		go func() {
			ended <- after.ServeSession(t.Context(), server, &handover.Facts{Address: "alice@example.test", Peer: peer.Addr, TLS: &handover.TLS{}, State: state})
		}()
		got := converse(t, client, "CAPA\r\nQUIT\r\n")
		if err := <-ended; err != nil || before == "" || !strings.Contains(got, "+OK"+before+".\r\n") || !strings.Contains(got, "SASL ") {
			t.Errorf("%v: before %q, after %q (%v)", peer, before, got, err)
		}
	}
}

// TestRefusedSession: a client hears why there is no maildrop for it, though it has sent commands
// that nobody reads any more.
func TestRefusedSession(t *testing.T) {
	d := newDrop(t, messages...)
	d.openErr = mailbox.ErrInUse
	s, _ := testServer(t, d)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(client, "STAT\r\nQUIT\r\n"); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.ServeSession(t.Context(), conn, &handover.Facts{State: []byte(`{}`)}) }()
	if got := converse(t, client, ""); got != "-ERR [IN-USE] another session has the maildrop\r\n" {
		t.Errorf("%q", got)
	}
	client.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// fatal is a maildrop with a bug.
type fatal struct{ *fakeDrop }

func (fatal) Open(context.Context, uint32) (*mailbox.Body, error) { panic("bug") }

// TestBugGivesLockBack: a session that dies keeps its user out of no other one.
func TestBugGivesLockBack(t *testing.T) {
	d := newDrop(t, messages...)
	s, _ := testServer(t, d)
	open := s.Open
	s.Open = func(ctx context.Context, user string) (Maildrop, error) {
		_, err := open(ctx, user)
		return fatal{d}, err
	}
	client, server := net.Pipe()
	defer client.Close()
	died := make(chan any, 1)
	go func() {
		defer func() { died <- recover() }() // as internal/serve does
		s.ServeConn(t.Context(), server, stdio)
	}()
	go func() { _, _ = io.Copy(io.Discard, client) }()
	if _, err := io.WriteString(client, loginLines+"RETR 1\r\n"); err != nil {
		t.Fatal(err)
	}
	if v := <-died; v != "bug" || d.locked {
		t.Errorf("died of %v, locked %v", v, d.locked)
	}
}

// TestLeadingZeros: a number is answered as it stands in the list of all, however it was written.
func TestLeadingZeros(t *testing.T) {
	s, _ := testServer(t, newDrop(t, "Subject: x\n\n"))
	c, done := connect(t, t.Context(), s, stdio)
	if got := converse(t, c, loginLines+"LIST 001\r\nUIDL 01\r\nLIST 0\r\nQUIT\r\n"); !strings.Contains(got, "\r\n+OK 1 14\r\n+OK 1 0000000") || !strings.Contains(got, "-ERR no such message") {
		t.Errorf("%q", got)
	}
	<-done
}
