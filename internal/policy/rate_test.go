package policy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestRate(t *testing.T) {
	s := newSite(t)
	s.o.ClientRate, s.o.NetworkRate = 3, 5
	p := New(s.o)
	connect := func(ip string) Verdict {
		v := p.Visit(context.Background(), client(ip), nil)
		defer v.Close()
		return v.Connect()
	}
	for i, st := range []struct {
		after time.Duration
		ip    string
		want  string
	}{
		{0, "192.0.2.1", ""}, {0, "192.0.2.1", ""}, {0, "192.0.2.1", ""},
		{0, "192.0.2.1", "client-rate"},
		{0, "192.0.2.2", ""}, {0, "192.0.2.3", ""},
		{0, "192.0.2.4", "network-rate"},
		{0, "192.0.3.4", ""}, // another network
		{30 * time.Second, "192.0.2.1", "client-rate"},
		// The window slides: half of the last minute's three still count, then none.
		{60 * time.Second, "192.0.2.1", ""},
		{0, "192.0.2.1", "client-rate"},
		{60 * time.Second, "192.0.2.1", ""},
		{time.Hour, "192.0.2.1", ""},
		{-2 * time.Hour, "192.0.2.1", ""}, // a clock that was set back
		{0, "2001:db8::1", ""}, {0, "2001:db8::1", ""}, {0, "2001:db8::1", ""},
		{0, "2001:db8::1", "client-rate"},
		{0, "2001:db8::2", "client-rate"}, {0, "2001:db8::ffff:ffff:ffff:ffff", "client-rate"}, // a host is a whole /64
		{0, "2001:db8:0:1::1", ""}, {0, "2001:db8:0:2::1", ""},
		{0, "2001:db8:0:3::1", "network-rate"}, {0, "2001:db8:0:ffff::1", "network-rate"}, // a network is a /48
		{0, "2001:db8:1::1", ""},
	} {
		s.now = s.now.Add(st.after)
		r := connect(st.ip)
		if r.Refuses() != (st.want != "") || r.Refuses() && (r.Check != st.want || r.Code != 421 || r.DSN != "4.7.0" || !r.Close) {
			t.Errorf("step %d: %+v, want %q", i, r, st.want)
		}
	}
}

func TestUserRecipients(t *testing.T) {
	s := newSite(t)
	p := New(s.o)
	if r := p.User("ann@home.test"); r.Action != Pass {
		t.Errorf("without a limit: %+v", r)
	}
	s.o.UserRecipients = 2
	p = New(s.o)
	for i, want := range []Action{Pass, Pass, Defer, Defer} {
		if r := p.User("ann@home.test"); r.Action != want || want == Defer && (r.Code != 452 || r.DSN != "4.7.1" || r.Close) {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if r := New(s.o).User("bob@home.test"); r.Refuses() {
		t.Errorf("another user: %+v", r)
	}
	if r := New(s.o).User("ann@home.test"); !r.Refuses() {
		t.Errorf("another process: %+v", r)
	}
	s.now = s.now.Add(2 * time.Hour)
	if r := p.User("ann@home.test"); r.Refuses() {
		t.Errorf("two hours later: %+v", r)
	}
}

func TestSessions(t *testing.T) {
	s := newSite(t)
	s.o.ClientSessions, s.o.NetworkSessions = 2, 3
	p := New(s.o)
	open := func(ip string) (*Visit, Verdict) {
		v := p.Visit(context.Background(), client(ip), nil)
		return v, v.Connect()
	}
	a, r1 := open("192.0.2.1")
	b, r2 := open("192.0.2.1")
	c, r3 := open("192.0.2.1")
	c.Close()
	d, r4 := open("192.0.2.2")
	e, r5 := open("192.0.2.3")
	e.Close()
	if r1.Refuses() || r2.Refuses() || r3.Check != "client-sessions" || r4.Refuses() || r5.Check != "network-sessions" {
		t.Errorf("%+v\n%+v\n%+v\n%+v\n%+v", r1, r2, r3, r4, r5)
	}
	if r3.Code != 421 || !r3.Close {
		t.Errorf("%+v", r3)
	}
	a.Close()
	if f, r := open("192.0.2.1"); r.Refuses() {
		t.Errorf("after one has left: %+v", r)
	} else {
		f.Close()
	}
	b.Close()
	d.Close()
	if len(p.mine) != 0 {
		t.Errorf("left over: %v", p.mine)
	}
}

// Sessions of other processes count while these live, and not when they were killed.
func TestSessionsOfProcesses(t *testing.T) {
	s := newSite(t)
	s.o.ClientSessions = 1
	p := New(s.o)
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Skip(err)
	}
	defer sleeper.Process.Kill()
	put := func(last time.Time) {
		t.Helper()
		err := p.rates.update(kindClientOpen, []string{"192.0.2.1"}, func(key uint64, b *bucket) {
			b.put(b.place(p.rateWorth), record{key: key, c: 1, pid: uint32(sleeper.Process.Pid), last: uint32(last.Unix())})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	connect := func() Verdict {
		v := p.Visit(context.Background(), client("192.0.2.1"), nil)
		defer v.Close()
		return v.Connect()
	}
	put(s.now)
	if r := connect(); !r.Refuses() {
		t.Errorf("a living process: %+v", r)
	}
	s.now = s.now.Add(25 * time.Hour)
	if r := connect(); r.Refuses() {
		t.Errorf("a day later: %+v", r)
	}
	put(s.now)
	if err := sleeper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = sleeper.Wait() // killed
	if r := connect(); r.Refuses() {
		t.Errorf("a dead process: %+v", r)
	}
}

// What one connection costs: a look-up and an update of one record, twice with the limits of
// sessions, in a file that others use as well.
func BenchmarkConnect(b *testing.B) {
	for _, c := range []struct {
		name           string
		rate, sessions int
	}{{"rate", 1 << 30, 0}, {"rate_and_sessions", 1 << 30, 100}} {
		b.Run(c.name, func(b *testing.B) {
			o := Options{State: b.TempDir(), ClientRate: c.rate, NetworkRate: c.rate, ClientSessions: c.sessions, NetworkSessions: c.sessions}
			p := New(o)
			for i := 0; b.Loop(); i++ {
				v := p.Visit(context.Background(), client(fmt.Sprintf("192.0.%d.%d", i>>8&255, i&255)), nil)
				if r := v.Connect(); r.Refuses() {
					b.Fatal(r)
				}
				v.Close()
			}
		})
	}
	b.Run("process_per_connection", func(b *testing.B) {
		o := Options{State: b.TempDir(), ClientRate: 1 << 30, NetworkRate: 1 << 30}
		for i := 0; b.Loop(); i++ {
			p := New(o) // opens the file anew
			v := p.Visit(context.Background(), client("192.0.2.1"), nil)
			if r := v.Connect(); r.Refuses() {
				b.Fatal(r)
			}
			v.Close()
			p.rates.close()
		}
	})
	if fi, err := os.Stat(filepath.Join(b.TempDir(), "x")); err == nil {
		b.Fatal(fi)
	}
}
