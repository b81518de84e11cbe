package handover

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var certificate = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
})

// connectTLS is connect with TLS on it.
func connectTLS(t *testing.T) (client, login *tls.Conn) {
	t.Helper()
	cert, err := certificate()
	if err != nil {
		t.Fatal(err)
	}
	c, s := connect(t)
	client, login = tls.Client(c, &tls.Config{InsecureSkipVerify: true}), tls.Server(s, &tls.Config{Certificates: []tls.Certificate{cert}})
	done := make(chan error, 1)
	go func() { done <- login.Handshake() }()
	if err := errors.Join(client.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return client, login
}

// proxied runs a proxy between a client and a session that the test plays.
func proxied(t *testing.T, ctx context.Context) (client *tls.Conn, session *net.UnixConn, done chan struct{}) {
	t.Helper()
	client, login := connectTLS(t)
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	if err := theirs.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		var p proxies
		p.run(ctx, login, ours)
		login.Close()
	}()
	return client, theirs, done
}

func over(t *testing.T, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the proxy goes on")
	}
}

func TestProxyOfATLSSession(t *testing.T) {
	t.Parallel()
	p := newPlace(t, nil)
	p.tickets.add("ann")
	client, login := connectTLS(t)
	cs := login.ConnectionState()
	done := make(chan error, 1)
	go func() {
		err := NewClient(p.path).Do(t.Context(), login, Request{Protocol: POP3, Ticket: "ann", TLS: &cs, State: "echo"})
		done <- errors.Join(err, login.Close())
	}()
	r := bufio.NewReader(client)
	if s, err := r.ReadString('\n'); s != "ready\n" {
		t.Fatalf("%q %v", s, err)
	}
	if _, err := io.WriteString(client, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if s, err := r.ReadString('\n'); s != "hello\n" {
		t.Fatalf("%q %v", s, err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A refusal leaves the connection to whoever asked.
	client, login = connectTLS(t)
	if err := p.ask(login, "ann", "echo"); !errors.Is(err, ErrRefused) {
		t.Errorf("%v", err)
	}
	go func() { _, _ = io.WriteString(login, "-ERR\n") }()
	if s, err := bufio.NewReader(client).ReadString('\n'); s != "-ERR\n" {
		t.Errorf("%q %v", s, err)
	}
}

// TestProxyHalfClose: a client that has said all still gets what the session has to say.
func TestProxyHalfClose(t *testing.T) {
	t.Parallel()
	client, session, done := proxied(t, t.Context())
	if _, err := io.WriteString(client, "last"); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(session); string(b) != "last" || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	text := strings.Repeat("answer", 100_000)
	go func() {
		_, _ = io.WriteString(session, text)
		session.Close()
	}()
	b, err := io.ReadAll(client)
	if string(b) != text || err != nil {
		t.Errorf("%d octets, %v", len(b), err)
	}
	over(t, done)
}

// TestProxyEndsWithTheSession: the client gets the last words and a proper end of TLS, though it
// is in the middle of sending.
func TestProxyEndsWithTheSession(t *testing.T) {
	t.Parallel()
	client, session, done := proxied(t, t.Context())
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(client, strings.Repeat("x", 100_000))
		sent <- err
	}()
	if _, err := io.ReadFull(session, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(session, "bye"); err != nil {
		t.Fatal(err)
	}
	session.Close()
	if b, err := io.ReadAll(client); string(b) != "bye" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	<-sent
	client.Close()
	over(t, done)
}

func TestProxyEndsWithTheClient(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"close", "reset"} {
		client, session, done := proxied(t, t.Context())
		if way == "reset" {
			if err := client.NetConn().(*net.TCPConn).SetLinger(0); err != nil {
				t.Fatal(err)
			}
			client.NetConn().Close()
		} else {
			client.Close()
		}
		if b, err := io.ReadAll(session); len(b) > 0 || err != nil {
			t.Errorf("%s: %q %v", way, b, err)
		}
		session.Close()
		over(t, done)
	}
}

// TestProxyIsTold: when the login process ends, the session sees the client leave and may finish.
func TestProxyIsTold(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(context.Background())
	client, session, done := proxied(t, ctx)
	if _, err := io.WriteString(client, "one"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(session, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	stop()
	if b, err := io.ReadAll(session); len(b) > 0 || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	if _, err := io.WriteString(session, "goodbye"); err != nil {
		t.Fatal(err)
	}
	session.Close()
	if b, err := io.ReadAll(client); string(b) != "goodbye" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	over(t, done)
}

// TestProxyIsExact: megabytes in both directions at once, in pieces of all sizes, arrive as they
// were sent; and a side that does not read holds the other up instead of filling memory.
func TestProxyIsExact(t *testing.T) {
	t.Parallel()
	client, session, done := proxied(t, t.Context())
	if err := client.NetConn().(*net.TCPConn).SetWriteBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	const size = 24 << 20
	data := make([]byte, size)
	rand.Read(data)
	var sent [2]atomic.Int64
	send := func(w io.Writer, sent *atomic.Int64) {
		for i, n := 0, 1; i < size; i, n = i+n, (n*7+1)%50_000+1 {
			n = min(n, size-i)
			if _, err := w.Write(data[i : i+n]); err != nil {
				t.Error(err)
				return
			}
			sent.Add(int64(n))
		}
	}
	go send(client, &sent[0])
	go send(session, &sent[1])
	last, since := int64(-1), time.Now()
	eventually(t, "back-pressure", func() bool {
		if n := sent[0].Load() + sent[1].Load(); n != last {
			last, since = n, time.Now()
		}
		return last > 0 && time.Since(since) > 300*time.Millisecond
	})
	if a, b := sent[0].Load(), sent[1].Load(); a == size || b == size {
		t.Errorf("%d and %d octets were taken without a reader", a, b)
	}
	var wg sync.WaitGroup
	for _, r := range []io.Reader{session, client} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			h := sha256.New()
			n, err := io.Copy(h, io.LimitReader(r, size))
			if want := sha256.Sum256(data); err != nil || n != size || !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("%d octets, %v, or others than were sent", n, err)
			}
		}()
	}
	wg.Wait()
	session.Close()
	client.Close()
	over(t, done)
}

// TestIdleProxiesAreCheap counts what a session that waits costs the login process.
func TestIdleProxiesAreCheap(t *testing.T) {
	if testing.Short() {
		t.Skip("makes hundreds of TLS connections")
	}
	const n = 200
	heap := func() int64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	var p proxies
	var wg sync.WaitGroup
	type conns struct{ client, login *tls.Conn }
	var all []conns
	for range n {
		c, l := connectTLS(t)
		all = append(all, conns{c, l})
	}
	before := heap()
	var sessions []*net.UnixConn
	for _, c := range all {
		ours, theirs, err := pair()
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, theirs)
		wg.Add(1)
		go func() {
			defer wg.Done()
			p.run(t.Context(), c.login, ours)
		}()
		// Traffic both ways leaves nothing behind but what TLS keeps.
		if _, err := c.client.Write(make([]byte, 3000)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(theirs, make([]byte, 3000)); err != nil {
			t.Fatal(err)
		}
		if _, err := theirs.Write(make([]byte, 3000)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.client, make([]byte, 3000)); err != nil {
			t.Fatal(err)
		}
	}
	each := (heap() - before) / n
	t.Logf("%d octets for each idle session", each)
	if each > 40<<10 {
		t.Errorf("%d octets for each idle session", each)
	}
	for _, s := range sessions {
		s.Close()
	}
	for _, c := range all {
		c.client.Close()
	}
	wg.Wait()
}

func TestReadFacts(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		`{"user":"ann@x.test","peer":"192.0.2.1:5","tls":{"version":"TLS 1.3","cipher":"x"}}`: true,
		`{"user":"ann@x.test","peer":""}`: true,
		``:                                false,
		`{"u`:                             false,
		`{"user":"` + strings.Repeat("x", 5*maxLine) + `"}`: false,
	} {
		f, err := ReadFacts(strings.NewReader(text))
		if (err == nil) != ok || ok && f.Address != "ann@x.test" {
			t.Errorf("%.40q: %+v %v", text, f, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	if _, err := ReadFacts(w); err == nil {
		t.Error("facts from a pipe's wrong end")
	}
}
