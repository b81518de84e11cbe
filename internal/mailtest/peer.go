package mailtest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// PeerOptions say what a scripted SMTP peer is like.
type PeerOptions struct {
	Addr      string      // host:port, or the path of a UNIX socket; "" takes 127.0.0.1:0
	LMTP      bool        // LHLO, and a reply for each recipient after the text
	Abilities []string    // of EHLO; nil takes DefaultAbilities
	TLS       *tls.Config // offers STARTTLS
	Implicit  bool        // TLS from the first octet on
	User      string      // USER:PASSWORD that AUTH accepts
	Discard   bool        // do not keep message texts, only their sizes
	// Script changes answers: "WHAT => ACTION". WHAT is "greeting", "text" (after the first
	// line of message text), "dot", or the start of a command line; "#2" behind it means the
	// second time only, "#2+" from the second time on. ACTION is a reply (several lines
	// separated by "|"), or "close", "stall", "garbage", "slow REPLY" (an octet at a time), or
	// "reply then close" as "REPLY; close".
	Script []string
}

// DefaultAbilities are what a current server announces.
func DefaultAbilities() []string {
	return []string{"PIPELINING", "SIZE 10240000", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"}
}

// PeerMessage is one message a peer has taken.
type PeerMessage struct {
	Conn int // number of the connection, from 1
	From string
	To   []string
	Mail string // the MAIL line
	Text string // with LF line ends and without dot stuffing
	Size int
	TLS  bool
	User string // who authenticated
}

// Peer is an SMTP or LMTP server that follows a script. What a client does against the rules
// is collected in Faults. It may be used concurrently.
type Peer struct {
	o     PeerOptions
	l     net.Listener
	rules []peerRule
	quit  chan struct{}
	wg    sync.WaitGroup

	mu       sync.Mutex
	conns    int
	open     map[net.Conn]bool
	messages []PeerMessage
	commands []string
	faults   []string
}

type peerRule struct {
	what   string
	nth    int
	onward bool
	action string
	seen   int
}

// StartPeer serves until the test ends, and then fails it if a client broke the rules.
func StartPeer(t testing.TB, o PeerOptions) *Peer {
	t.Helper()
	p, err := NewPeer(o)
	if err != nil {
		t.Fatalf("scripted peer: %v", err)
	}
	t.Cleanup(func() {
		p.Close()
		for _, f := range p.Faults() {
			t.Errorf("the client broke a rule: %s", f)
		}
	})
	return p
}

// NewPeer listens and serves.
func NewPeer(o PeerOptions) (*Peer, error) {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.Abilities == nil {
		o.Abilities = DefaultAbilities()
	}
	p := &Peer{o: o, quit: make(chan struct{}), open: map[net.Conn]bool{}}
	for _, s := range o.Script {
		what, action, ok := strings.Cut(s, " => ")
		if !ok {
			return nil, fmt.Errorf("script line %q: want WHAT => ACTION", s)
		}
		r := peerRule{what: strings.ToUpper(what), action: action}
		if i := strings.IndexByte(what, '#'); i >= 0 {
			n, onward := strings.CutSuffix(what[i+1:], "+")
			nth, err := strconv.Atoi(n)
			if err != nil {
				return nil, fmt.Errorf("script line %q: %w", s, err)
			}
			r.what, r.nth, r.onward = r.what[:i], nth, onward
		}
		p.rules = append(p.rules, r)
	}
	network := "tcp"
	if strings.HasPrefix(o.Addr, "/") {
		network = "unix"
	}
	var err error
	if p.l, err = net.Listen(network, o.Addr); err != nil {
		return nil, err
	}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the peer listens.
func (p *Peer) Addr() string { return p.l.Addr().String() }

// Port is the number behind the colon of Addr.
func (p *Peer) Port() int {
	_, s, _ := net.SplitHostPort(p.Addr())
	n, _ := strconv.Atoi(s) // 0 for a UNIX socket
	return n
}

// Close ends the peer and all its connections.
func (p *Peer) Close() {
	p.mu.Lock()
	select {
	case <-p.quit:
		p.mu.Unlock()
		return
	default:
	}
	close(p.quit)
	p.l.Close()
	for c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// HangUp closes the connections there are, as a server does that restarts.
func (p *Peer) HangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

// Conns counts the connections so far.
func (p *Peer) Conns() int { p.mu.Lock(); defer p.mu.Unlock(); return p.conns }

// Messages are those taken so far.
func (p *Peer) Messages() []PeerMessage {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.messages)
}

// Commands are the command lines so far, of all connections; lines of AUTH exchanges too.
func (p *Peer) Commands() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.commands)
}

// Faults are what clients did against the rules.
func (p *Peer) Faults() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.faults)
}

func (p *Peer) fault(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.faults) < 20 {
		p.faults = append(p.faults, fmt.Sprintf(format, args...))
	}
}

func (p *Peer) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.conns++
		n := p.conns
		select {
		case <-p.quit:
			c.Close()
			p.mu.Unlock()
			return
		default:
		}
		p.open[c] = true
		p.mu.Unlock()
		p.wg.Go(func() {
			p.serve(c, n)
			c.Close()
			p.mu.Lock()
			delete(p.open, c)
			p.mu.Unlock()
		})
	}
}

// action returns what the script has for an event, or "".
func (p *Peer) action(event string) string {
	event = strings.ToUpper(event)
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.rules {
		r := &p.rules[i]
		if !strings.HasPrefix(event, r.what) {
			continue
		}
		r.seen++
		if r.nth == 0 || r.seen == r.nth || r.onward && r.seen >= r.nth {
			return r.action
		}
	}
	return ""
}

// peerConn is one connection to a Peer.
type peerConn struct {
	*Peer
	n      int
	conn   net.Conn
	br     *bufio.Reader
	bw     *bufio.Writer
	tls    bool
	user   string
	hello  bool
	mail   string
	from   string
	to     []string
	chunks bytes.Buffer
}

func (p *Peer) serve(c net.Conn, n int) {
	if p.o.Implicit {
		c = tls.Server(c, p.o.TLS)
	}
	s := &peerConn{Peer: p, n: n, conn: c, br: bufio.NewReaderSize(c, 64<<10), bw: bufio.NewWriter(c), tls: p.o.Implicit}
	if !s.answer("greeting", "220 peer.test ready") {
		s.bw.Flush()
		return
	}
	for {
		if s.br.Buffered() == 0 && s.bw.Flush() != nil {
			return
		}
		line, err := s.br.ReadString('\n')
		if err != nil {
			return
		}
		if !strings.HasSuffix(line, "\r\n") {
			s.fault("command line %q does not end in CRLF", line)
		}
		line = strings.TrimRight(line, "\r\n")
		p.mu.Lock()
		p.commands = append(p.commands, line)
		p.mu.Unlock()
		if !s.command(line) {
			s.bw.Flush()
			return
		}
	}
}

// answer sends what the script says for event, else the usual reply. It returns false when
// the connection is to be closed.
func (s *peerConn) answer(event, usual string) bool { return s.reply(s.action(event), usual) }

// reply is answer for an action that is known already.
func (s *peerConn) reply(a, usual string) bool {
	if a == "" {
		a = usual
	}
	a, last := strings.CutSuffix(a, "; close")
	a, slow := strings.CutPrefix(a, "slow ")
	switch a {
	case "close":
		return false
	case "stall":
		s.bw.Flush()
		s.stall()
		return false
	case "garbage":
		a = "\x00\xff\x01 what? \x7f"
	}
	text := strings.ReplaceAll(a, "|", "\r\n") + "\r\n"
	if !slow {
		s.bw.WriteString(text)
		return !last
	}
	s.bw.Flush()
	for i := range len(text) {
		if _, err := io.WriteString(s.conn, text[i:i+1]); err != nil {
			return false
		}
	}
	return !last
}

// stall says nothing more until the client gives up or the peer is closed.
func (s *peerConn) stall() {
	done := make(chan struct{})
	go func() {
		// Ignored: whatever ends the reading is what is waited for.
		_, _ = io.Copy(io.Discard, s.br)
		close(done)
	}()
	select {
	case <-done:
	case <-s.quit:
	}
}

func (s *peerConn) command(line string) bool {
	verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
	verb, _, _ = strings.Cut(verb, ":")
	if !slices.Contains(s.o.Abilities, "PIPELINING") && s.br.Buffered() > 0 {
		s.fault("%s is followed by %d octets, and PIPELINING was not announced", verb, s.br.Buffered())
	}
	switch verb {
	case "EHLO", "LHLO", "HELO":
		return s.helloCmd(line, verb)
	case "STARTTLS":
		return s.startTLS(line)
	case "AUTH":
		return s.auth(line)
	case "MAIL":
		return s.mailCmd(line)
	case "RCPT":
		return s.rcptCmd(line)
	case "DATA":
		return s.data(line)
	case "BDAT":
		return s.bdat(line)
	case "RSET":
		s.from, s.mail, s.to = "", "", nil
		return s.answer(line, "250 2.0.0 reset")
	case "NOOP":
		return s.answer(line, "250 2.0.0 ok")
	case "QUIT":
		s.answer(line, "221 2.0.0 bye")
		return false
	}
	s.fault("unknown command %q", line)
	return s.answer(line, "500 5.5.1 unknown command")
}

func (s *peerConn) helloCmd(line, verb string) bool {
	if s.o.LMTP != (verb == "LHLO") {
		s.fault("%s to a peer with LMTP %t", verb, s.o.LMTP)
	}
	s.hello = true
	lines := []string{"peer.test"}
	if verb != "HELO" {
		lines = append(lines, s.o.Abilities...)
		if s.o.TLS != nil && !s.tls {
			lines = append(lines, "STARTTLS")
		}
	}
	for i := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		lines[i] = "250" + sep + lines[i]
	}
	return s.answer(line, strings.Join(lines, "|"))
}

func (s *peerConn) startTLS(line string) bool {
	if s.o.TLS == nil || s.tls {
		s.fault("STARTTLS was not announced")
	}
	reply := s.action(line)
	if reply == "" {
		reply = "220 2.0.0 go on"
	}
	if reply == "close" {
		return false
	}
	s.bw.WriteString(strings.ReplaceAll(reply, "|", "\r\n") + "\r\n")
	if s.bw.Flush() != nil || reply[0] != '2' {
		return true
	}
	t := tls.Server(s.conn, s.o.TLS)
	if t.Handshake() != nil {
		return false
	}
	s.conn, s.tls, s.hello = t, true, false
	s.br.Reset(t)
	s.bw.Reset(t)
	return true
}

func (s *peerConn) auth(line string) bool {
	f := strings.Fields(line)
	var got string
	switch {
	case len(f) == 3 && strings.EqualFold(f[1], "PLAIN"):
		b, _ := base64.StdEncoding.DecodeString(f[2])
		if parts := strings.Split(string(b), "\x00"); len(parts) == 3 {
			got = parts[1] + ":" + parts[2]
		}
	case len(f) == 2 && strings.EqualFold(f[1], "LOGIN"):
		var words []string
		for _, ask := range []string{"VXNlcm5hbWU6", "UGFzc3dvcmQ6"} {
			s.bw.WriteString("334 " + ask + "\r\n")
			if s.bw.Flush() != nil {
				return false
			}
			l, err := s.br.ReadString('\n')
			if err != nil {
				return false
			}
			b, _ := base64.StdEncoding.DecodeString(strings.TrimRight(l, "\r\n"))
			words = append(words, string(b))
		}
		got = strings.Join(words, ":")
	}
	if got == "" || got != s.o.User {
		return s.answer(line, "535 5.7.8 wrong")
	}
	s.user, _, _ = strings.Cut(got, ":")
	return s.answer(line, "235 2.7.0 welcome")
}

func (s *peerConn) mailCmd(line string) bool {
	if !s.hello {
		s.fault("MAIL before EHLO")
	}
	if s.mail != "" {
		return s.answer("nested", "503 5.5.1 nested MAIL")
	}
	a := s.action(line)
	if granted(a) {
		s.mail, s.from, s.to = line, between(line), nil
		s.chunks.Reset()
	}
	return s.reply(a, "250 2.1.0 sender ok")
}

func (s *peerConn) rcptCmd(line string) bool {
	a := s.action(line)
	if s.mail == "" {
		return s.reply(a, "503 5.5.1 MAIL first")
	}
	if granted(a) {
		s.to = append(s.to, between(line))
	}
	return s.reply(a, "250 2.1.5 recipient ok")
}

func (s *peerConn) data(line string) bool {
	a := s.action(line)
	if a == "" && len(s.to) == 0 {
		a = "503 5.5.1 no valid recipients"
	}
	if a != "" && !strings.HasPrefix(a, "354") {
		return s.reply(a, "")
	}
	if s.br.Buffered() > 0 {
		s.fault("text before the reply to DATA")
	}
	if !s.reply(a, "354 go on") || s.bw.Flush() != nil {
		return false
	}
	text, ok := s.text()
	return ok && s.taken(text)
}

// text reads message text to the final dot, checking each line.
func (s *peerConn) text() (string, bool) {
	var b strings.Builder
	size := 0
	first := true
	for {
		line, err := s.br.ReadSlice('\n')
		if err != nil {
			if err == bufio.ErrBufferFull {
				s.fault("a text line of over %d octets", s.br.Size())
			}
			return "", false
		}
		if !bytes.HasSuffix(line, []byte("\r\n")) || bytes.IndexByte(line[:len(line)-2], '\r') >= 0 {
			s.fault("text line %.80q: a lone CR or LF", line)
		}
		if string(line) == ".\r\n" {
			return b.String(), true
		}
		line = bytes.TrimPrefix(line, []byte("."))
		if len(line) > 1000 {
			s.fault("a text line of %d octets", len(line))
		}
		size += len(line)
		if !s.o.Discard {
			b.Write(line[:len(line)-2])
			b.WriteByte('\n')
		}
		if first {
			first = false
			if a := s.action("text"); a != "" && (!s.reply(a, "") || s.bw.Flush() != nil) {
				return "", false
			}
		}
	}
}

func (s *peerConn) bdat(line string) bool {
	f := strings.Fields(line)
	n, err := strconv.Atoi(f[1])
	if err != nil || n < 0 {
		s.fault("bad %q", line)
		return false
	}
	if _, err := io.CopyN(&s.chunks, s.br, int64(n)); err != nil {
		return false
	}
	if len(f) < 3 {
		return s.answer(line, "250 2.0.0 more")
	}
	return s.taken(s.chunks.String())
}

// taken answers for a whole message, in LMTP once for each recipient.
func (s *peerConn) taken(text string) bool {
	m := PeerMessage{Conn: s.n, From: s.from, Mail: s.mail, Text: text, Size: len(text), TLS: s.tls, User: s.user}
	to := s.to
	s.from, s.mail, s.to = "", "", nil
	rounds := 1
	if s.o.LMTP {
		rounds = len(to)
	}
	ok := true
	for i := range rounds {
		event := "dot"
		if s.o.LMTP {
			event = "dot " + to[i]
		}
		a := s.action(event)
		if granted(a) {
			m.To = append(m.To, to[i])
			if !s.o.LMTP {
				m.To = to
			}
		}
		if ok = s.reply(a, "250 2.0.0 taken"); !ok {
			break
		}
	}
	if len(m.To) > 0 {
		s.mu.Lock()
		s.messages = append(s.messages, m)
		s.mu.Unlock()
	}
	return ok
}

// granted tells whether an action, or the usual reply in place of none, is a success.
func granted(a string) bool {
	return a == "" || strings.HasPrefix(strings.TrimPrefix(a, "slow "), "2")
}

func between(line string) string {
	_, s, _ := strings.Cut(line, "<")
	s, _, _ = strings.Cut(s, ">")
	return s
}
