package smtp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pennypost/internal/envelope"
)

// Transaction is one message for one peer.
type Transaction struct {
	From       string // reverse-path as Address.String gives it; "" is the null reverse-path
	To         []envelope.Recipient
	Ret        string // DSN parameters go out only when the peer announces DSN
	EnvID      string
	Body       string // "", envelope.Body8Bit or BodyBinary: what the text needs
	UTF8       bool   // header or addresses need SMTPUTF8
	RequireTLS bool
	By         *envelope.DeliverBy // RFC 2852; nil: no deadline
	Left       time.Duration       // until By's deadline, measured just before Send
	Priority   int                 // RFC 6710
	Size       int64               // of the text, as Shape.Size has it; 0: not known. BodyBinary needs it exactly
	Text       io.Reader           // read once, from the peer's consent on
}

// Again tells what may still be tried for a recipient.
type Again uint8

// Values of Again.
const (
	Settled   Again = iota // the status stands
	OtherHost              // this peer cannot take it now; nothing has been handed over
	SameHost               // too many recipients at once; another transaction may take it
)

// Outcome is the result for one recipient of a transaction.
type Outcome struct {
	envelope.Status
	Again Again
	DSN   bool // the peer took over the DSN parameters
}

// errClientText marks a failure to read the text: it is no fault of the peer.
var errClientText = errors.New("cannot read the message")

// Send runs one transaction and returns one outcome for each recipient of it, in order. With
// PIPELINING everything before the text is one write. An error tells that the connection is
// broken; the outcomes are complete all the same.
func (c *Client) Send(ctx context.Context, t *Transaction) ([]Outcome, error) {
	c.Use(ctx)
	c.script.begin(c.sent == 0)
	c.sent++
	s := &clientSend{Client: c, t: t, out: make([]Outcome, len(t.To))}
	if !s.possible() {
		return s.out, nil
	}
	s.commands()
	if len(s.asked) == 0 {
		return s.out, nil
	}
	var err error
	switch {
	case c.dead:
		err = &ClientError{StageMail, errors.New("connection is closed")}
	case c.ext.Pipelining:
		err = s.pipelined()
	default:
		err = s.stepwise()
	}
	if err != nil {
		s.unsettled(err)
	} else if c.dead {
		err = &ClientError{StageMail, errors.New("peer closes the connection (421)")}
	}
	return s.out, err
}

// clientSend is a transaction under way.
type clientSend struct {
	*Client
	t     *Transaction
	out   []Outcome
	asked []int  // recipients that are asked for, by index
	taken []int  // of these, those the peer accepted
	cmds  []byte // command lines from MAIL on
}

// all settles every recipient alike.
func (s *clientSend) all(st envelope.Status, again Again) {
	for i := range s.out {
		s.out[i] = Outcome{Status: st, Again: again}
	}
}

// possible settles what needs no question because the peer said at EHLO that it cannot.
func (s *clientSend) possible() bool {
	t, x := s.t, &s.ext
	switch {
	case !clientSafe(t.From):
		s.all(envelope.Fail("5.1.7", "the reverse-path has control characters"), Settled)
	case t.RequireTLS && !x.RequireTLS:
		s.all(envelope.Fail("5.7.30", "the message asks for REQUIRETLS, which the peer does not announce"), OtherHost)
	case t.tooLate():
		s.all(envelope.Fail("5.4.7", "not delivered by the time the sender asked for"), Settled)
	case t.By != nil && t.By.Mode == "R" && !s.lmtp && (!x.DeliverBy || t.Left < x.MinBy):
		// RFC 2852 §4.1.4.1; §7: other hosts of the domain are not asked.
		s.all(envelope.Fail("5.3.3", "the peer does not promise to keep the time the sender asked for"), Settled)
	case !x.UTF8 && (t.UTF8 || !clientASCII(t.From)):
		s.all(envelope.Fail("5.6.7", "the message needs SMTPUTF8, which the peer does not announce"), OtherHost)
	case t.Body == envelope.BodyBinary && !(x.Binary && x.Chunking && t.Size > 0):
		s.all(envelope.Fail("5.6.3", "the message is binary, and the peer does not announce BINARYMIME"), OtherHost)
	case t.Body == envelope.Body8Bit && !x.EightBit:
		s.all(envelope.Fail("5.6.3", "the message has 8-bit text, and the peer does not announce 8BITMIME"), OtherHost)
	case x.MaxSize > 0 && t.Size > x.MaxSize: // RFC 1870 §6.2 lets a client not even ask
		s.all(envelope.Fail("5.3.4", fmt.Sprintf("the message has %d octets, the peer takes %d", t.Size, x.MaxSize)), Settled)
	default:
		return true
	}
	return false
}

// commands writes MAIL and the RCPTs down.
func (s *clientSend) commands() {
	b := append(s.cmds, "MAIL FROM:<"...)
	b = append(append(b, s.t.From...), '>')
	if s.ext.Size && s.t.Size > 0 {
		b = strconv.AppendInt(append(b, " SIZE="...), s.t.Size, 10)
	}
	if s.t.Body != "" {
		b = append(append(b, " BODY="...), s.t.Body...)
	}
	utf8Addr := !clientASCII(s.t.From)
	for i := range s.t.To {
		utf8Addr = utf8Addr || !clientASCII(s.t.To[i].Addr)
	}
	if s.ext.UTF8 && (s.t.UTF8 || utf8Addr) {
		b = append(b, " SMTPUTF8"...)
	}
	if s.t.RequireTLS {
		b = append(b, " REQUIRETLS"...)
	}
	b = s.timely(b)
	if s.ext.DSN {
		if s.t.Ret == "FULL" || s.t.Ret == "HDRS" {
			b = append(append(b, " RET="...), s.t.Ret...)
		}
		if s.t.EnvID != "" && clientASCII(s.t.EnvID) {
			b = clientXtext(append(b, " ENVID="...), s.t.EnvID)
		}
	}
	b = append(b, '\r', '\n')
	for i := range s.t.To {
		r := &s.t.To[i]
		switch {
		case !clientSafe(r.Addr) || r.Addr == "":
			s.out[i].Status = envelope.Fail("5.1.3", "the address has control characters or is empty")
		case !s.ext.UTF8 && !clientASCII(r.Addr):
			s.out[i] = Outcome{Status: envelope.Fail("5.6.7", "the address needs SMTPUTF8, which the peer does not announce"), Again: OtherHost}
		case s.overLimit(i):
		default:
			b = s.rcpt(b, r)
			s.asked = append(s.asked, i)
			s.out[i].DSN = s.ext.DSN
		}
	}
	s.cmds = b
}

func (s *clientSend) rcpt(b []byte, r *envelope.Recipient) []byte {
	b = append(append(append(b, "RCPT TO:<"...), r.Addr...), '>')
	if s.ext.DSN {
		for i, n := range s.notify(r.Notify) {
			if !clientSafe(n) {
				continue
			}
			sep := ","
			if i == 0 {
				sep = " NOTIFY="
			}
			b = append(append(b, sep...), n...)
		}
		b = clientORcpt(b, r.ORcpt, s.ext.UTF8)
	}
	return append(b, '\r', '\n')
}

// pipelined sends all commands at once, RFC 2920 §3.1.
func (s *clientSend) pipelined() error {
	group := s.cmds
	if s.reset {
		group = append([]byte("RSET\r\n"), group...)
	}
	bdat := s.t.Body == envelope.BodyBinary
	if !bdat { // RFC 3030 §4.2: BDAT waits for the answers, a refused chunk would be sent in vain
		group = append(group, "DATA\r\n"...)
	}
	wrote := s.writeGroup(group)
	if s.dead { // it answers what it has not been asked
		return <-wrote
	}
	err := s.answers(group, bdat)
	if err != nil {
		// A writer that is stuck would wait for its own time-out. Ignored: a closed connection
		// ends it too.
		_ = s.conn.SetDeadline(time.Unix(1, 0))
	}
	if werr := <-wrote; err == nil && werr != nil {
		err = s.broken(StageRcpt, werr)
	}
	return err
}

// writeGroup writes while the answers are read: a peer that stops reading until its answers
// are taken would else wait for us and we for it (RFC 2920 §3.1).
func (s *clientSend) writeGroup(group []byte) <-chan error {
	done := make(chan error, 1)
	if err := s.deadline(s.limits.Command); err != nil {
		done <- err
		return done
	}
	if ok, err := s.mayAsk(StageMail); !ok {
		done <- err
		return done
	}
	if len(group) <= 4096 {
		_, err := s.conn.Write(group)
		done <- err
		return done
	}
	conn := s.conn
	go func() {
		_, err := conn.Write(group)
		done <- err
	}()
	return done
}

// answers reads the replies to a pipelined group, then sends the text where the peer wants it.
func (s *clientSend) answers(group []byte, bdat bool) error {
	if s.reset {
		r, err := s.answer(&group, StageMail)
		if err != nil {
			return err
		}
		s.reset = r.Class() != 2
	}
	r, err := s.answer(&group, StageMail)
	if err != nil {
		return err
	}
	refused := s.mailReply(r)
	for _, i := range s.asked {
		if r, err = s.answer(&group, StageRcpt); err != nil {
			return err
		}
		if !refused {
			s.rcptReply(i, r)
		}
	}
	if bdat {
		return s.chunk()
	}
	if r, err = s.readNamed(&group, StageData, s.limits.Data); err != nil {
		return err
	}
	return s.dataReply(r)
}

func (s *clientSend) answer(group *[]byte, stage Stage) (*Reply, error) {
	return s.readNamed(group, stage, s.limits.Command)
}

// readNamed reads the reply to the first command of group and notes both in the transcript.
func (s *clientSend) readNamed(group *[]byte, stage Stage, limit time.Duration) (*Reply, error) {
	line, rest, _ := bytes.Cut(*group, []byte("\r\n"))
	*group = rest
	s.script.addBytes("C: ", line)
	return s.Client.read(stage, limit)
}

// stepwise sends each command when the one before is answered.
func (s *clientSend) stepwise() error {
	if s.reset {
		if err := s.Reset(); err != nil {
			return err
		}
		s.reset = false
	}
	cmds := s.cmds
	r, err := s.ask(&cmds, StageMail, s.limits.Command)
	if err != nil {
		return err
	}
	if s.mailReply(r) {
		return nil
	}
	for _, i := range s.asked {
		if r, err = s.ask(&cmds, StageRcpt, s.limits.Command); err != nil {
			return err
		}
		s.rcptReply(i, r)
		if s.dead {
			return &ClientError{StageRcpt, errors.New("peer closes the connection (421)")}
		}
	}
	if s.t.Body == envelope.BodyBinary {
		return s.chunk()
	}
	if len(s.taken) == 0 {
		s.reset = true
		return nil
	}
	data := []byte("DATA\r\n")
	if r, err = s.ask(&data, StageData, s.limits.Data); err != nil {
		return err
	}
	return s.dataReply(r)
}

func (s *clientSend) ask(cmds *[]byte, stage Stage, limit time.Duration) (*Reply, error) {
	n := bytes.Index(*cmds, []byte("\r\n")) + 2
	if err := s.writeCommand(stage, (*cmds)[:n]); err != nil {
		return nil, err
	}
	return s.readNamed(cmds, stage, limit)
}

// mailReply tells whether the peer refused the transaction.
func (s *clientSend) mailReply(r *Reply) bool {
	if r.Class() == 2 {
		return false
	}
	// A 3xx makes no sense here and is no success either.
	st, again := replyDeferral(StageMail, r), OtherHost
	if r.Class() == 5 {
		st, again = replyStatus(StageMail, r), Settled
	}
	for _, i := range s.asked {
		s.out[i].Status, s.out[i].Again = st, again
	}
	s.reset = true
	return true
}

func (s *clientSend) rcptReply(i int, r *Reply) {
	o := &s.out[i]
	switch {
	case r.Class() == 2:
		s.taken = append(s.taken, i)
	case r.Code == 421:
		o.Status, o.Again = replyStatus(StageRcpt, r), OtherHost
	case s.tooMany(r):
		o.Status, o.Again = replyDeferral(StageRcpt, r), SameHost
		o.Code = "4.5.3"
	case r.Class() == 3:
		o.Status = replyDeferral(StageRcpt, r)
	default:
		o.Status = replyStatus(StageRcpt, r)
	}
}

// tooMany tells whether a reply to RCPT means "not in this transaction". RFC 5321 §4.5.3.1.10:
// 452, or in old servers 552, and never before 100 recipients, which not all servers keep to.
func (s *clientSend) tooMany(r *Reply) bool {
	if len(s.taken) == 0 {
		return false
	}
	switch r.Code {
	case 452:
		return r.Enhanced == "" || r.Enhanced == "4.5.3"
	case 552:
		return r.Enhanced == "5.5.3" || r.Enhanced == "" && len(s.taken) >= 100
	}
	return false
}

// replyDeferral is the status of a reply that is a deferral whatever its class says.
func replyDeferral(stage Stage, r *Reply) envelope.Status {
	st := replyStatus(stage, r)
	st.Verdict = envelope.Deferred
	if r.Class() != 4 {
		st.Code = "4.5.0"
	}
	return st
}

// dataReply goes on after the reply to DATA.
func (s *clientSend) dataReply(r *Reply) error {
	if len(s.taken) == 0 {
		return s.nobody(r)
	}
	if r.Code != 354 {
		s.reset = true
		for _, i := range s.taken {
			switch {
			case r.Class() == 5:
				s.out[i].Status = replyStatus(StageData, r)
			case r.Code == 421:
				s.out[i].Status, s.out[i].Again = replyStatus(StageData, r), OtherHost
			default:
				s.out[i].Status = replyDeferral(StageData, r)
			}
		}
		s.taken = nil
		return nil
	}
	if s.dot == nil {
		s.dot = NewDotWriter(nil)
	}
	s.dot.Reset(clientBlocks{s.Client})
	s.script.add("", "(message text)")
	err := s.copyText(s.dot, s.t.Text)
	if err == nil {
		err = s.dot.Close()
	}
	if err != nil {
		return s.textBroken(err)
	}
	return s.done()
}

// copyText is io.Copy that tells errors of the text from those of the connection. A message
// in memory is not copied in between.
func (s *clientSend) copyText(w io.Writer, text io.Reader) error {
	if b, ok := text.(*bytes.Reader); ok {
		_, err := b.WriteTo(w)
		return err
	}
	if s.block == nil {
		s.block = make([]byte, clientBlock)
	}
	for {
		n, err := text.Read(s.block)
		if n > 0 {
			if _, err := w.Write(s.block[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errClientText, err)
		}
	}
}

// nobody ends a transaction without recipients. RFC 2920 §3.1: a peer that says 354 all the
// same gets a message of no lines, whose reply concerns nobody.
func (s *clientSend) nobody(r *Reply) error {
	if r.Code != 354 {
		s.reset = true
		return nil
	}
	_, err := s.cmd(StageDone, s.limits.Done, ".")
	if s.lmtp {
		s.dead = true // RFC 2033 §4.2 wants 503 instead; how many replies follow is anybody's guess
	}
	return err
}

// chunk sends the text as it is in one chunk, RFC 3030 §2.
func (s *clientSend) chunk() error {
	if len(s.taken) == 0 {
		s.reset = true
		return nil
	}
	line := "BDAT " + strconv.FormatInt(s.t.Size, 10) + " LAST"
	s.script.add("C: ", line)
	w := clientBlocks{s.Client}
	if _, err := io.WriteString(w, line+"\r\n"); err != nil {
		return s.textBroken(err)
	}
	text := &io.LimitedReader{R: s.t.Text, N: s.t.Size}
	err := s.copyText(w, text)
	if err == nil && text.N > 0 {
		err = fmt.Errorf("%w: it is %d octets short", errClientText, text.N)
	}
	if err != nil {
		return s.textBroken(err)
	}
	return s.done()
}

// textBroken handles an end of the connection, or of our own file, inside the text. Without
// the final dot the peer has taken over nothing.
func (s *clientSend) textBroken(err error) error {
	if errors.Is(err, errClientText) {
		s.dead = true
		for _, i := range s.taken {
			s.out[i].Status = envelope.Defer("4.3.0", err.Error())
		}
		s.taken = nil
		return &ClientError{StageBody, err}
	}
	// A server that refuses in the middle says why before it closes.
	if r, rerr := s.Client.read(StageBody, min(s.limits.Done, 5*time.Second)); rerr == nil && r.Class() >= 4 {
		for _, i := range s.taken {
			s.out[i].Status = replyStatus(StageDone, r)
		}
		s.taken = nil
	}
	return s.broken(StageBody, err)
}

// done reads the reply to the end of the text, in LMTP one for each recipient (RFC 2033 §4.2).
func (s *clientSend) done() error {
	s.script.add("C: ", ".")
	for len(s.taken) > 0 {
		r, err := s.Client.read(StageDone, s.limits.Done)
		if err != nil {
			return err
		}
		about := s.taken[:1]
		if !s.lmtp {
			about = s.taken
		}
		for _, i := range about {
			s.out[i].Status = replyDone(r)
		}
		s.taken = s.taken[len(about):]
	}
	return nil
}

// replyDone is the status that the reply to the whole message means.
func replyDone(r *Reply) envelope.Status {
	switch r.Class() {
	case 2:
		st := envelope.Status{Verdict: envelope.Relayed, Code: r.Enhanced, Reply: r.String(), Remote: true}
		if st.Code == "" {
			st.Code = "2.0.0"
		}
		return st
	case 3:
		return replyDeferral(StageDone, r)
	}
	return replyStatus(StageDone, r)
}

// unsettled gives those without a result the one that a broken connection means.
func (s *clientSend) unsettled(err error) {
	st, again := BrokenStatus(err), OtherHost
	var ce *ClientError
	if errors.As(err, &ce) && ce.Stage == StageDone {
		// RFC 5321 §4.2.5, RFC 1047: the peer may have it all the same. Trying another host
		// at once would make a second copy likely; the peer may also finish its own work first.
		again = Settled
		st.Reply += " after the whole message was sent: the peer may have taken it, and it may arrive twice"
	}
	for _, i := range s.asked {
		if s.out[i].Verdict == "" {
			s.out[i].Status, s.out[i].Again = st, again
		}
	}
}

// BrokenStatus is the status of an error of this package that is no reply.
func BrokenStatus(err error) envelope.Status {
	stage, code := "", "4.4.2"
	var ce *ClientError
	if errors.As(err, &ce) {
		stage = " at " + ce.Stage.String()
		err = ce.Err
	}
	var to interface{ Timeout() bool }
	switch {
	case errors.Is(err, ErrReply):
		return envelope.Defer("4.5.0", "the peer does not speak SMTP"+stage+": "+err.Error())
	case errors.Is(err, errEarly):
		return envelope.Defer("4.5.0", "the peer is out of step"+stage+": "+err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return envelope.Defer(code, "the attempt was broken off"+stage)
	case errors.As(err, &to) && to.Timeout():
		return envelope.Defer(code, "no answer in time"+stage)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return envelope.Defer(code, "the peer closed the connection"+stage)
	}
	return envelope.Defer(code, "connection lost"+stage+": "+err.Error())
}

// clientBlocks gives each write of text its own time, RFC 5321 §4.5.3.2.5. A peer that answers
// before the end of the text gets no more of it, above all not the end.
type clientBlocks struct{ c *Client }

func (b clientBlocks) Write(p []byte) (int, error) {
	if err := b.c.deadline(b.c.limits.Block); err != nil {
		return 0, err
	}
	if b.c.pending() {
		return 0, errEarly
	}
	return b.c.conn.Write(p)
}

// clientSafe tells whether s can stand in a command: no control characters, which would end it.
func clientSafe(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return utf8.ValidString(s)
}

func clientASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// clientXtext appends s encoded as xtext, RFC 3461 §4.
func clientXtext(b []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < '!' || c > '~' || c == '+' || c == '=' {
			b = append(b, '+', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// clientORcpt appends an ORCPT parameter. An address that is not ASCII can be written only to
// a peer with SMTPUTF8, as utf-8-addr-unitext (RFC 6533 §3); else it is left out.
func clientORcpt(b []byte, orcpt string, utf8OK bool) []byte {
	kind, addr, ok := strings.Cut(orcpt, ";")
	if !ok || kind == "" || addr == "" || !clientSafe(kind) || !clientASCII(kind) || strings.ContainsAny(kind, " =+") {
		return b
	}
	if clientASCII(addr) {
		return clientXtext(append(append(append(b, " ORCPT="...), kind...), ';'), addr)
	}
	if !utf8OK || !clientSafe(addr) {
		return b
	}
	b = append(b, " ORCPT=utf-8;"...)
	for i := 0; i < len(addr); i++ {
		if c := addr[i]; c <= ' ' || c == '\\' || c == '+' || c == '=' || c == 0x7f {
			b = fmt.Appendf(b, `\x{%02X}`, c)
		} else {
			b = append(b, c)
		}
	}
	return b
}
