package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// load starts the peers and says whether there is anything to load them with.
func (b *bench) load() (bool, error) {
	if !have("smtp-source") {
		b.skip("smtp-source is not installed (Debian: postfix)")
		return false, nil
	}
	return true, b.up()
}

// turns runs f for each peer in turn, rounds times, so that the noise of the machine hits all
// alike. The disk is probed before each round when writers is not 0. A row that is slow, on a
// machine that is busy, is not repeated.
func (b *bench) turns(l *line, writers int, f func(*peer) (float64, error)) error {
	begin := time.Now()
	for round := range b.rounds {
		if round > 0 && (time.Since(begin) > slowRow || time.Since(b.begin) > slowRun) {
			l.extra += fmt.Sprintf("(%d of %d rounds) ", round, b.rounds)
			break
		}
		if writers > 0 {
			ops, err := b.probe(writers)
			if err != nil {
				return err
			}
			l.probe = append(l.probe, ops)
		}
		for _, p := range b.peers {
			v, err := f(p)
			if err != nil {
				return err
			}
			l.add(p.name, v)
		}
	}
	return nil
}

const (
	slowRow = 12 * time.Second
	slowRun = 3 * time.Minute
)

func (b *bench) accept() error {
	if ok, err := b.load(); !ok {
		return err
	}
	for _, c := range []struct {
		name              string
		n, sessions, size int
		keep              bool
		budget            *budget
	}{
		{"4 KiB, many a connection, 1 session", 300, 1, 4096, true, &budget{ratio: 1.5, probe: 0.5}},
		{"4 KiB, many a connection, 10 sessions", 1000, 10, 4096, true, &budget{ratio: 2, probe: 0.5}},
		{"4 KiB, many a connection, 50 sessions", 1500, 50, 4096, true, &budget{ratio: 4, probe: 0.5}},
		{"4 KiB, one a connection, 1 session", 300, 1, 4096, false, &budget{ratio: 1.3}},
		{"4 KiB, one a connection, 10 sessions", 1000, 10, 4096, false, &budget{ratio: 2}},
		{"4 KiB, one a connection, 50 sessions", 1000, 50, 4096, false, &budget{ratio: 3}},
		{"50 KiB, one a connection, 10 sessions", 300, 10, 50 << 10, false, &budget{ratio: 1.5}},
		{"1 MiB, one a connection, 10 sessions", 60, 10, 1 << 20, false, &budget{ratio: 1.5}},
	} {
		n := max(c.sessions, b.n(c.n))
		l := b.out.line("accept "+c.name, "msg/s", c.budget)
		err := b.turns(l, c.sessions, func(p *peer) (float64, error) { return p.accepted(n, c.sessions, c.size, c.keep) })
		if err != nil {
			return err
		}
		b.out.flush()
	}
	return nil
}

// accepted is messages a second until the last 250; deliveries run beside, and the next run
// finds the queue empty again.
func (p *peer) accepted(n, sessions, size int, keep bool) (float64, error) {
	if err := p.empty(); err != nil {
		return 0, err
	}
	t, err := p.send(n, sessions, size, keep, "alice@example.test")
	if err != nil {
		return 0, err
	}
	_, err = p.await(n, 20*time.Millisecond)
	return float64(n) / t.Seconds(), err
}

func (b *bench) local() error {
	if ok, err := b.load(); !ok {
		return err
	}
	n := b.n(1000)
	l := b.out.line(fmt.Sprintf("local, SMTP to Maildir, %d messages", n), "s", &budget{less: true, ratio: 0.5})
	err := b.turns(l, 10, func(p *peer) (float64, error) { return p.local(n, 10, 10*time.Millisecond) })
	if err != nil {
		return err
	}
	one := b.out.line("local, one message", "ms", &budget{less: true, ratio: 0.6})
	client, err := b.clientAlone()
	if err != nil {
		return err
	}
	one.extra = fmt.Sprintf("(smtp-source alone takes %s ms of it) ", number(client))
	return b.turns(one, 1, func(p *peer) (float64, error) {
		var all []float64
		for range 10 {
			secs, err := p.local(1, 1, 200*time.Microsecond)
			if err != nil {
				return 0, err
			}
			all = append(all, 1000*secs)
		}
		return median(all), nil
	})
}

// clientAlone is the milliseconds that smtp-source needs by itself, from its start to its end,
// for a message that nobody stores.
func (b *bench) clientAlone() (float64, error) {
	s, err := startSink(b.sink)
	if err != nil {
		return 0, err
	}
	defer s.stop()
	p := &peer{name: "sink", addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(b.sink))}
	var all []float64
	for range 10 {
		t, err := p.send(1, 1, 4096, false, "r@sink.test")
		if err != nil {
			return 0, err
		}
		all = append(all, 1000*t.Seconds())
	}
	return median(all), nil
}

// local is the seconds from the first connection to the last message in the Maildir.
func (p *peer) local(n, sessions int, poll time.Duration) (float64, error) {
	if err := p.empty(); err != nil {
		return 0, err
	}
	begin := time.Now()
	if _, err := p.send(n, sessions, 4096, sessions > 1, "alice@example.test"); err != nil {
		return 0, err
	}
	_, err := p.await(n, poll)
	return time.Since(begin).Seconds(), err
}

func (b *bench) relay() error {
	if ok, err := b.load(); !ok {
		return err
	}
	n := b.n(500)
	l := b.out.line(fmt.Sprintf("relay, %d messages to one sink", n), "s", &budget{less: true, ratio: 0.6})
	conns := make(map[string]int)
	err := b.turns(l, 10, func(p *peer) (float64, error) {
		s, err := startSink(b.sink)
		if err != nil {
			return 0, err
		}
		defer s.stop()
		begin := time.Now()
		if _, err := p.send(n, 10, 4096, true, "r@sink.test"); err != nil {
			return 0, err
		}
		err = s.await(func(c counts) bool { return c.messages >= n })
		conns[p.name] = s.count().connections
		return time.Since(begin).Seconds(), err
	})
	l.extra += fmt.Sprintf("connections %v", conns)
	return err
}

func (b *bench) fanOut() error {
	if ok, err := b.load(); !ok {
		return err
	}
	for _, domains := range []int{1, 100} {
		l := b.out.line(fmt.Sprintf("fan-out, 1,000 recipients in %d domains", domains), "s", &budget{less: true, ratio: 1})
		seen := make(map[string]string)
		err := b.turns(l, 0, func(p *peer) (float64, error) {
			s, err := startSink(b.sink)
			if err != nil {
				return 0, err
			}
			defer s.stop()
			begin := time.Now()
			if err := sendOne(p.addr, 1000, domains); err != nil {
				return 0, fmt.Errorf("%s: %w", p.name, err)
			}
			err = s.await(func(c counts) bool { return c.recipients >= 1000 })
			c := s.count()
			seen[p.name] = fmt.Sprintf("%d in %d", c.messages, c.connections)
			return time.Since(begin).Seconds(), err
		})
		l.extra += fmt.Sprintf("transactions in connections %v", seen)
		if err != nil {
			return err
		}
	}
	return nil
}

// inject runs the sendmail command of each peer as programs do.
func (b *bench) inject() error {
	if err := b.up(); err != nil {
		return err
	}
	message := []byte("From: bench@example.test\nTo: alice@example.test\nSubject: inject\n\n" + strings.Repeat(strings.Repeat("x", 71)+"\n", 55))
	for _, c := range []struct {
		name  string
		n, at int
		bound float64
	}{{"inject, sequential", 100, 1, 0.5}, {"inject, 10 at once", 300, 10, 0.6}} {
		l := b.out.line(c.name, "ms", &budget{less: true, ratio: c.bound})
		err := b.turns(l, c.at, func(p *peer) (float64, error) {
			if err := p.empty(); err != nil {
				return 0, err
			}
			n := max(c.at, b.n(c.n))
			t, err := p.inject(n, c.at, message)
			if err != nil {
				return 0, err
			}
			_, err = p.await(n, 20*time.Millisecond)
			return 1000 * t.Seconds() / float64(n), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *peer) inject(n, at int, message []byte) (time.Duration, error) {
	jobs := make(chan int)
	errs := make([]error, at)
	var wg sync.WaitGroup
	begin := time.Now()
	for w := range at {
		wg.Go(func() {
			for range jobs {
				cmd := exec.Command(p.sendmail[0], append(p.sendmail[1:len(p.sendmail):len(p.sendmail)], "-f", "bench@example.test", "alice@example.test")...)
				cmd.Env, cmd.Stdin = p.env, bytes.NewReader(message)
				if out, err := cmd.CombinedOutput(); err != nil {
					errs[w] = fmt.Errorf("%s: %w: %s", filepath.Base(p.sendmail[0]), err, out)
				}
			}
		})
	}
	for i := range n {
		jobs <- i
	}
	close(jobs)
	wg.Wait()
	return time.Since(begin), errors.Join(errs...)
}
