package handover

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// line is a good request.
func line(t *testing.T, ticket string) []byte {
	t.Helper()
	b, err := (&Request{Protocol: POP3, Ticket: ticket, State: "who"}).line()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// raw sends octets and descriptors, and returns the word that it gets.
func (p *place) raw(b []byte, fds ...int) string {
	p.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.path, Net: "unix"})
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	if err == nil {
		err = c.CloseWrite()
	}
	if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ENOTCONN) {
		p.t.Fatal(err)
	}
	s, err := bufio.NewReader(c).ReadBytes('\n')
	if err != nil {
		if errors.Is(err, syscall.ECONNRESET) {
			return wordSyntax // it has closed with our octets unread, and the answer is lost
		}
		p.t.Fatalf("%.80q: %v", b, err)
	}
	var a reply
	if err := json.Unmarshal(s, &a); err != nil {
		p.t.Fatalf("%q: %v", s, err)
	}
	if a.OK {
		return "ok"
	}
	return a.Error
}

func TestHostileRequests(t *testing.T) {
	t.Parallel()
	p := newPlace(t, nil)
	file, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	socket := func(domain, kind int) int {
		fd, err := syscall.Socket(domain, kind, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Close(fd) })
		return fd
	}
	listening := socket(syscall.AF_INET, syscall.SOCK_STREAM)
	if err := syscall.Listen(listening, 1); err != nil {
		t.Fatal(err)
	}
	datagrams, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(datagrams[:])
	server, err := net.Dial("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	named, err := server.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer named.Close()
	_, login := connect(t)
	f, err := login.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	good := int(f.Fd())
	ann := line(t, "ann")
	change := func(old, new string) []byte { return bytes.Replace(ann, []byte(old), []byte(new), 1) }
	for _, c := range []struct {
		name string
		b    []byte
		fds  []int
		want string
	}{
		{"nothing", nil, nil, wordTemporary},
		{"garbage", []byte("\x00\xff\n"), []int{good}, wordSyntax},
		{"half a line", ann[:20], []int{good}, wordTemporary},
		{"a line without an end, and too long", bytes.Repeat([]byte("x"), maxLine+1), []int{good}, wordSyntax},
		{"two lines", append(ann[:len(ann):len(ann)], ann...), []int{good}, wordSyntax},
		{"huge members", change(`"who"`, `"`+strings.Repeat("x", maxLine)+`"`), []int{good}, wordSyntax},
		{"deep", change(`"who"`, strings.Repeat("[", 20000)+strings.Repeat("]", 20000)), []int{good}, wordSyntax},
		{"too much input", change(`"state"`, `"pending":"`+strings.Repeat("AAAA", MaxPending/3+1)+`","state"`), []int{good}, wordSyntax},
		{"ticket of another type", change(`"ann"`, `["ann"]`), []int{good}, wordSyntax},
		{"another protocol", change(`"pop3"`, `"imap"`), []int{good}, wordSyntax},
		{"a path as protocol", change(`"pop3"`, `"../../bin/sh"`), []int{good}, wordSyntax},
		{"a protocol with a line end", change(`"pop3"`, `"pop3\n"`), []int{good}, wordSyntax},
		{"a peer that is none", change(`"ticket"`, `"peer":"x msg=\"login refused\"","ticket"`), []int{good}, wordSyntax},
		{"TLS with a line end", change(`"ticket"`, `"tls":{"version":"1\n"},"ticket"`), []int{good}, wordSyntax},
		{"no descriptor", ann, nil, wordSyntax},
		{"two descriptors", ann, []int{good, good}, wordSyntax},
		{"forty descriptors", ann, bytesToInts(good, 40), wordSyntax},
		{"a file", ann, []int{int(file.Fd())}, wordSyntax},
		{"a pipe", ann, []int{int(w.Fd())}, wordSyntax},
		{"a listening socket", ann, []int{listening}, wordSyntax},
		{"a socket without a peer", ann, []int{socket(syscall.AF_INET, syscall.SOCK_STREAM)}, wordSyntax},
		{"a datagram socket", ann, []int{datagrams[0]}, wordSyntax},
		{"a connection to a server", ann, []int{int(named.Fd())}, wordSyntax},
		{"good", ann, []int{good}, "ok"},
	} {
		// What is refused for its form leaves the ticket as it is.
		if c.want == "ok" {
			p.tickets.add("ann")
		}
		if got := p.raw(c.b, c.fds...); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	eventually(t, "the session's end", func() bool { return strings.Contains(p.log.String(), "session ends") })
	if n := strings.Count(p.log.String(), "session begins"); n != 1 {
		t.Errorf("%d sessions\n%s", n, p.log)
	}
	for line := range strings.Lines(p.log.String()) {
		if strings.HasPrefix(line, "x msg") || len(line) > 1000 {
			t.Errorf("a line that the request has made: %q", line)
		}
	}
}

func bytesToInts(fd, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = fd
	}
	return out
}

// TestSlowSendersDoNotBlock: connections that send nothing make room for the next, so that one
// who sends at once is served however many of them there are.
func TestSlowSendersDoNotBlock(t *testing.T) {
	t.Parallel()
	p := newPlace(t, nil)
	p.tickets.add("ann")
	var slow []net.Conn
	for range 3 * maxReading {
		c, err := net.Dial("unix", p.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("{")); err != nil && !errors.Is(err, syscall.EPIPE) {
			t.Fatal(err)
		}
		slow = append(slow, c)
	}
	client, login := connect(t)
	begin := time.Now()
	if err := p.ask(login, "ann", "who"); err != nil {
		t.Fatal(err)
	}
	login.Close()
	if b, err := io.ReadAll(client); err != nil || len(b) == 0 {
		t.Errorf("%q %v", b, err)
	}
	if d := time.Since(begin); d > sendTime/2 {
		t.Errorf("served after %v", d)
	}
	if err := slow[0].SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(slow[0]); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the oldest is still there")
	}
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	if n := len(p.server.reading); n > maxReading {
		t.Errorf("%d connections are being read", n)
	}
}

func TestSocketsOfOthersAreNotTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a socket to somebody else")
	}
	t.Parallel()
	p := newPlace(t, nil)
	if err := os.Chown(p.path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	p.tickets.add("ann")
	_, login := connect(t)
	if err := p.ask(login, "ann", "who"); err == nil || len(p.tickets.good) != 1 {
		t.Errorf("%v", err)
	}
}

// chunks is a source made of a fuzzer's octets: 0xfe ends a chunk, 0xfd is a descriptor.
type chunks struct {
	left [][]byte
	next int
	open map[int]bool
}

func (c *chunks) read(p []byte) (int, []int, error) {
	if len(c.left) == 0 {
		return 0, nil, io.EOF
	}
	var fds []int
	b := c.left[0]
	for len(b) > 0 && b[0] == 0xfd {
		c.next++
		fd := -c.next - 1000 // closing it does no harm
		fds, b = append(fds, fd), b[1:]
		c.open[fd] = true
	}
	n := copy(p, b)
	if b = b[n:]; len(b) > 0 {
		c.left[0] = b
		return n, fds, nil
	}
	c.left = c.left[1:]
	return n, fds, nil
}

func FuzzReadRequest(f *testing.F) {
	f.Add([]byte("\xfd{\"protocol\":\"pop3\",\"ticket\":\"x\",\"peer\":\"192.0.2.1:5\",\"state\":{\"a\":[1]}}\n"))
	f.Add([]byte("{\"protocol\":\"pop3\",\xfe\xfd\"ticket\":\"x\",\"pending\":\"QUJD\"}\n"))
	f.Add([]byte("\xfd\xfd\n"))
	f.Add([]byte("\xfd{\"protocol\":\"pop3\",\"ticket\":\"\\u000a\",\"tls\":{\"version\":\"TLS 1.3\",\"cipher\":\"x\"}}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		src := &chunks{left: bytes.Split(b, []byte{0xfe}), open: map[int]bool{}}
		r, fd, err := readRequest(src)
		if err != nil {
			if fd != -1 || r != nil {
				t.Fatal("an error with a request")
			}
			return
		}
		if len(src.open) != 1 || !src.open[fd] {
			t.Fatalf("descriptor %d of %v", fd, src.open)
		}
		if len(r.Pending) > MaxPending || r.Ticket == "" || !word(r.Protocol) || len(r.State) > maxLine {
			t.Fatalf("%+v", r)
		}
		// What is sent on to the session is read there as it was meant.
		told, err := json.Marshal(Facts{Protocol: r.Protocol, Peer: r.peer, TLS: r.TLS, Pending: r.Pending, State: r.State})
		if err != nil {
			t.Fatal(err)
		}
		facts, err := ReadFacts(bytes.NewReader(told))
		if err != nil || !bytes.Equal(facts.Pending, r.Pending) || facts.Peer != r.peer {
			t.Fatalf("%s: %v", told, err)
		}
	})
}

// TestLostAnswer: who has sent a clear connection and hears nothing does not know whether it is a
// session's by now, and must not speak on it. With TLS no session has it.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nobody accepts, nobody answers
	_, clear := connect(t)
	_, secure := connectTLS(t)
	for conn, lost := range map[net.Conn]bool{clear: true, secure: false} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := NewClient(path).Do(ctx, conn, Request{Protocol: POP3, Ticket: "ann"})
		cancel()
		if err == nil || errors.Is(err, ErrLost) != lost {
			t.Errorf("%T: %v", conn, err)
		}
	}
}
