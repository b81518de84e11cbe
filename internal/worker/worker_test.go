package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pennypost/internal/envelope"
)

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	var c [2]*net.UnixConn
	for i, f := range []*os.File{ours, theirs} {
		if c[i], err = unixConn(f); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { c[0].Close(); c[1].Close() })
	return c[0], c[1]
}

func message(t testing.TB, text string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "m")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func connect(t testing.TB, timeout time.Duration, max int, h Handler) *Client {
	t.Helper()
	a, b := pair(t)
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), b, Hello{Name: "fake"}, h, max); b.Close() }()
	c, err := NewClient(t.Context(), a, "mqueue", timeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); <-served })
	return c
}

func request(to ...string) *Request {
	r := &Request{ID: "0123456789abcdefgh", From: "a@x.test", EOL: "lf", Attempt: 1}
	for _, a := range to {
		r.To = append(r.To, envelope.Recipient{Addr: a})
	}
	return r
}

func deliverAll(_ context.Context, r *Request, _ *os.File) *Report {
	rep := &Report{}
	for _, to := range r.To {
		rep.Results = append(rep.Results, Result{To: to.Addr, Status: envelope.Status{Verdict: envelope.Delivered, Code: "2.0.0"}})
	}
	return rep
}

func TestManyInFlight(t *testing.T) {
	const n = 200
	var texts [n]*os.File
	for i := range texts {
		texts[i] = message(t, fmt.Sprintf("head%03d", i))
	}
	c := connect(t, time.Minute, 7, func(_ context.Context, r *Request, f *os.File) *Report {
		b := make([]byte, r.Size)
		if _, err := f.ReadAt(b, r.Offset); err != nil {
			return nil
		}
		return &Report{Results: []Result{{To: r.To[0].Addr, Status: envelope.Status{Verdict: envelope.Delivered, Code: "2.0.0", Reply: string(b)}}}}
	})
	var wg sync.WaitGroup
	for i := range texts {
		wg.Go(func() {
			r := request("b@y.test")
			r.ID, r.Offset, r.Size = fmt.Sprintf("%018d", i), 4, 3
			if i%20 == 0 { // a line that needs many reads must not lose its descriptor
				r.EnvID = strings.Repeat("x", 300<<10)
			}
			rep, err := c.Do(t.Context(), r, texts[i])
			if err != nil {
				t.Errorf("request %d: %v", i, err)
				return
			}
			if got, want := rep.Results[0].Reply, fmt.Sprintf("%03d", i); got != want {
				t.Errorf("request %d was answered for the file of %s", i, got)
			}
		})
	}
	wg.Wait()
}

// peer speaks for a worker by hand.
func peer(t *testing.T, timeout time.Duration, answer func(r Request) string) *Client {
	t.Helper()
	a, b := pair(t)
	go func() {
		defer b.Close()
		fmt.Fprintf(b, `{"versions":[1],"name":"byhand","new":{"field":1}}`+"\n")
		in := bufio.NewScanner(b)
		in.Scan()
		for in.Scan() {
			var r Request
			if err := json.Unmarshal(in.Bytes(), &r); err != nil {
				t.Error(err)
			}
			s := answer(r)
			if s == "die" {
				return
			}
			io.WriteString(b, s)
		}
	}()
	c, err := NewClient(t.Context(), a, "mqueue", timeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestBadPeer(t *testing.T) {
	ok := func(to string) string { return `{"to":"` + to + `","status":"delivered","dsn":"2.0.0"}` }
	for _, c := range []struct {
		name, results string // of the report, or the whole line when it does not start with [
		want          error
		verdicts      string
	}{
		{"right", "[" + ok("b@y.test") + "," + ok("c@y.test") + "]", nil, "delivered delivered"},
		{"other order", "[" + ok("c@y.test") + "," + ok("b@y.test") + "]", nil, "delivered delivered"},
		{"one missing", "[" + ok("c@y.test") + "]", nil, "deferred delivered"},
		{"none", "[]", nil, "deferred deferred"},
		{"null", "null", nil, "deferred deferred"},
		{"stranger", "[" + ok("b@y.test") + "," + ok("z@y.test") + "]", ErrProtocol, ""},
		{"twice", "[" + ok("b@y.test") + "," + ok("b@y.test") + "]", ErrProtocol, ""},
		{"too many", "[" + ok("b@y.test") + "," + ok("c@y.test") + "," + ok("c@y.test") + "]", ErrProtocol, ""},
		{"garbage", "this is no JSON\n", ErrProtocol, ""},
		{"wrong seq", `{"seq":77,"id":"0123456789abcdefgh","results":[]}` + "\n", ErrProtocol, ""},
		{"wrong id", `{"seq":1,"id":"x","results":[]}` + "\n", ErrProtocol, ""},
		{"dies", "die", ErrGone, ""},
		{"unknown verdict", `[{"to":"b@y.test","status":"eaten","dsn":"5.0.0"},` + ok("c@y.test") + "]", nil, "deferred delivered"},
		{"failed without a code", `[{"to":"b@y.test","status":"failed"},` + ok("c@y.test") + "]", nil, "deferred delivered"},
		{"failed with class 2", `[{"to":"b@y.test","status":"failed","dsn":"2.0.0"},` + ok("c@y.test") + "]", nil, "deferred delivered"},
		{"expanded to nobody", `[{"to":"b@y.test","status":"expanded","dsn":"2.0.0"},` + ok("c@y.test") + "]", nil, "deferred delivered"},
		{"expanded to rubbish", `[{"to":"b@y.test","status":"expanded","dsn":"2.0.0","expand":{"to":[{"addr":"a b"}]}},` + ok("c@y.test") + "]", nil, "deferred delivered"},
		{"prepended body", `[{"to":"b@y.test","status":"expanded","dsn":"2.0.0","expand":{"to":[{"addr":"d@y.test"}],"prepend":"X: y\n\nbody\n"}},` + ok("c@y.test") + "]", nil, "deferred delivered"},
		{"expanded", `[{"to":"b@y.test","status":"expanded","dsn":"2.0.0","expand":{"to":[{"addr":"d@y.test"}],"prepend":"X: y\n z\n"}},` + ok("c@y.test") + "]", nil, "expanded delivered"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := peer(t, time.Minute, func(r Request) string {
				if strings.HasPrefix(c.results, "[") || c.results == "null" {
					return fmt.Sprintf(`{"seq":%d,"id":"%s","later":true,"results":%s}`+"\n", r.Seq, r.ID, c.results)
				}
				return c.results
			})
			rep, err := p.Do(t.Context(), request("b@y.test", "c@y.test"), message(t, "x"))
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err != nil {
				if _, again := p.Do(t.Context(), request("b@y.test"), message(t, "x")); again == nil {
					t.Fatal("a peer that cannot be believed was asked again")
				}
				return
			}
			var got []string
			for i, r := range rep.Results {
				if r.To != []string{"b@y.test", "c@y.test"}[i] {
					t.Fatalf("results out of order: %v", rep.Results)
				}
				got = append(got, string(r.Verdict))
			}
			if s := strings.Join(got, " "); s != c.verdicts {
				t.Fatalf("verdicts %s, want %s: %+v", s, c.verdicts, rep.Results)
			}
		})
	}
}

func TestStallEndsTheConnection(t *testing.T) {
	p := peer(t, 50*time.Millisecond, func(Request) string { return "" })
	if _, err := p.Do(t.Context(), request("b@y.test"), message(t, "x")); !errors.Is(err, ErrTimeout) {
		t.Fatalf("stalled worker: %v", err)
	}
	<-p.Done()
}

func TestLateReportIsDropped(t *testing.T) {
	var first uint64
	p := peer(t, time.Minute, func(r Request) string {
		if first == 0 {
			first = r.Seq
			return ""
		}
		line := func(seq uint64) string {
			return fmt.Sprintf(`{"seq":%d,"id":"%s","results":[]}`+"\n", seq, r.ID)
		}
		return line(first) + line(r.Seq)
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Do(ctx, request("b@y.test"), message(t, "x")); !errors.Is(err, context.Canceled) {
		t.Fatalf("given up request: %v", err)
	}
	if _, err := p.Do(t.Context(), request("b@y.test"), message(t, "x")); err != nil {
		t.Fatalf("the late report of a request given up broke the connection: %v", err)
	}
}

func TestVersionMismatch(t *testing.T) {
	a, b := pair(t)
	go fmt.Fprintf(b, `{"versions":[2,3],"name":"future"}`+"\n")
	_, err := NewClient(t.Context(), a, "mqueue", 0)
	if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "versions [2 3]") {
		t.Fatalf("a worker of another version was taken: %v", err)
	}
}

func TestRequestWithoutDescriptor(t *testing.T) {
	a, b := pair(t)
	go fmt.Fprintf(a, `{"versions":[1],"name":"mqueue"}`+"\n"+`{"seq":1,"id":"x","to":[]}`+"\n")
	err := Serve(t.Context(), b, Hello{Name: "fake"}, deliverAll, 0)
	if !errors.Is(err, ErrProtocol) {
		t.Fatalf("a request without its message was served: %v", err)
	}
}

// TestServeFinishes: when its context ends, a worker reports on what it has begun.
func TestServeFinishes(t *testing.T) {
	a, b := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	begun, finish := make(chan bool), make(chan bool)
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, b, Hello{Name: "fake"}, func(hctx context.Context, r *Request, f *os.File) *Report {
			close(begun)
			<-finish
			if hctx.Err() != nil {
				t.Error("the handler's context ended while mqueue still listens")
			}
			return deliverAll(hctx, r, f)
		}, 0)
	}()
	c, err := NewClient(t.Context(), a, "mqueue", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { _, err := c.Do(t.Context(), request("b@y.test"), message(t, "x")); got <- err }()
	<-begun
	cancel()
	close(finish)
	if err := <-got; err != nil {
		t.Errorf("report of a worker that is ending: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestCheckPeer(t *testing.T) {
	a, _ := pair(t)
	if _, err := PeerUID(a); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err := CheckPeer(a, os.Getuid()); err != nil {
		t.Errorf("own uid: %v", err)
	}
	if os.Getuid() != 0 && CheckPeer(a, os.Getuid()+1) == nil {
		t.Error("a stranger's uid was accepted")
	}
}

func TestMayServe(t *testing.T) {
	for _, c := range []struct {
		holder, uid int
		ok          bool
	}{{7, 7, true}, {0, 7, true}, {0, 0, true}, {8, 7, false}, {7, 0, false}} {
		if mayServe(c.holder, c.uid) != c.ok {
			t.Errorf("holder %d for uid %d: %v", c.holder, c.uid, !c.ok)
		}
	}
}

func TestLongLine(t *testing.T) {
	l := newLineReader(plainSource{io.LimitReader(zeros{}, MaxLine+10*readBuffer)})
	if _, err := l.line(); !errors.Is(err, ErrProtocol) {
		t.Fatalf("endless line: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// FuzzLines cuts any stream as bufio does, however the reads fall.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nbc\n\nd"), uint8(1))
	f.Add([]byte("{}\n"), uint8(7))
	f.Fuzz(func(t *testing.T, in []byte, chunk uint8) {
		l := &lineReader{src: plainSource{&chunks{in, int(chunk) + 1}}, buf: make([]byte, 4)}
		rest := in
		for {
			got, err := l.line()
			want, after, ok := strings.Cut(string(rest), "\n")
			if !ok {
				if err == nil || (err == io.EOF) != (len(rest) == 0) {
					t.Fatalf("at the end: %q, %v with %q left", got, err, rest)
				}
				return
			}
			if err != nil || string(got) != want {
				t.Fatalf("line %q, %v; want %q", got, err, want)
			}
			rest = []byte(after)
		}
	})
}

// FuzzReport: whatever a worker reports, the checked report has one possible result for each
// recipient, or there is none.
func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"seq":1,"id":"0123456789abcdefgh","results":[{"to":"b@y.test","status":"failed","dsn":"5.1.1","reply":"no\nno"}]}`))
	f.Add([]byte(`{"seq":1,"id":"0123456789abcdefgh","results":[{"to":"b@y.test","status":"expanded","dsn":"2.0.0","expand":{"from":"","to":[{"addr":"x@y.test"}],"prepend":"A: b\n"}}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		rep := new(Report)
		if decode(line, rep, "report") != nil {
			return
		}
		req := request("b@y.test", "c@y.test")
		if check(req, rep) != nil {
			return
		}
		if len(rep.Results) != 2 {
			t.Fatalf("%d results", len(rep.Results))
		}
		for i := range rep.Results {
			r := &rep.Results[i]
			if r.To != req.To[i].Addr || impossible(r) != "" || strings.ContainsAny(r.Reply, "\r\n\x00") {
				t.Fatalf("believed: %+v", r)
			}
		}
	})
}

type chunks struct {
	rest []byte
	n    int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.rest[:min(c.n, len(c.rest))])
	c.rest = c.rest[n:]
	return n, nil
}

func BenchmarkDo(b *testing.B) {
	c := connect(b, time.Minute, 0, deliverAll)
	f := message(b, "x")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Do(b.Context(), request("b@y.test"), f); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
