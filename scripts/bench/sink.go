package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// counts is what a sink has seen. Postfix's smtp-sink does not count recipients, hence ours.
type counts struct{ connections, messages, recipients int }

// sink takes all mail on a port and counts. Recipients are counted when their message ends.
type sink struct {
	l  net.Listener
	mu sync.Mutex
	c  counts
	cs []net.Conn
}

func startSink(port int) (*sink, error) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	s := &sink{l: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.add(counts{connections: 1})
			s.mu.Lock()
			s.cs = append(s.cs, c)
			s.mu.Unlock()
			go s.serve(c)
		}
	}()
	return s, nil
}

func (s *sink) add(c counts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c.connections += c.connections
	s.c.messages += c.messages
	s.c.recipients += c.recipients
}

func (s *sink) count() counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c
}

// stop ends the connections too: one that a sender keeps open would count for this sink still.
func (s *sink) stop() {
	s.l.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.cs {
		c.Close()
	}
}

func (s *sink) await(enough func(counts) bool) error {
	for begin := time.Now(); !enough(s.count()); time.Sleep(2 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			return fmt.Errorf("the sink has %+v after a minute", s.count())
		}
	}
	return nil
}

// serve speaks as much SMTP as a sender needs, PIPELINING included: replies are flushed when
// no further command is waiting.
func (s *sink) serve(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	reply := func(line string) bool {
		_, err := io.WriteString(w, line+"\r\n")
		if err == nil && r.Buffered() == 0 {
			err = w.Flush()
		}
		return err == nil
	}
	rcpts := 0
	for ok := reply("220 sink"); ok; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " ")
		switch verb {
		case "EHLO":
			ok = reply("250-sink\r\n250-PIPELINING\r\n250 8BITMIME")
		case "RCPT":
			rcpts++
			ok = reply("250 ok")
		case "DATA":
			if ok = reply("354 go"); ok && readData(r) == nil {
				s.add(counts{messages: 1, recipients: rcpts})
				rcpts = 0
				ok = reply("250 ok")
			}
		case "QUIT":
			reply("221 bye")
			return
		default:
			ok = reply("250 ok")
		}
	}
}

func readData(r *bufio.Reader) error {
	for {
		line, err := r.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			line, err = r.ReadSlice('\n')
		}
		if err != nil || string(line) == ".\r\n" {
			return err
		}
	}
}

// sendOne hands in one message for many recipients over so many domains below sink.test.
func sendOne(addr string, recipients, domains int) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	expect := func(code string, times int) error {
		for times > 0 {
			line, err := r.ReadString('\n')
			if err != nil {
				return err
			}
			if len(line) > 3 && line[3] == '-' {
				continue
			}
			if !strings.HasPrefix(line, code) {
				return fmt.Errorf("expected %s, got %q", code, line)
			}
			times--
		}
		return nil
	}
	var to strings.Builder
	for i := range recipients {
		domain := "sink.test"
		if domains > 1 {
			domain = fmt.Sprintf("d%d.sink.test", i%domains)
		}
		fmt.Fprintf(&to, "RCPT TO:<r%d@%s>\r\n", i, domain)
	}
	for _, s := range []struct {
		say, code string
		times     int
	}{
		{"", "220", 1}, {"EHLO bench.test\r\n", "250", 1}, {"MAIL FROM:<bench@example.test>\r\n", "250", 1},
		{to.String(), "250", recipients}, {"DATA\r\n", "354", 1},
		{"Subject: fan-out\r\n\r\n" + strings.Repeat("x", 70) + "\r\n.\r\n", "250", 1},
	} {
		if _, err := io.WriteString(c, s.say); err != nil {
			return err
		}
		if err := expect(s.code, s.times); err != nil {
			return err
		}
	}
	return nil
}
