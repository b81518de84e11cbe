// Package hook asks programs of other people what to do with a client, a sender, a recipient or
// a message: one JSON object a question and one an answer, over a UNIX socket or over a
// program's standard input and output, mpolicyhook(7). It hides connections, processes, time
// limits and how many questions are open at once. What an answer does is the caller's business.
package hook

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pennypost/internal/envelope"
)

// The stages at which a hook may be asked.
const (
	Connect = "connect" // before the greeting
	Helo    = "helo"    // with the first MAIL behind it
	Mail    = "mail"
	Rcpt    = "rcpt"    // once a recipient
	Data    = "data"    // before the text: all recipients are known
	Message = "message" // behind the text: its header is known
)

// Stages lists them in their order.
func Stages() []string { return []string{Connect, Helo, Mail, Rcpt, Data, Message} }

// Options say whom to ask.
type Options struct {
	Name    string        // in logs
	Socket  string        // UNIX socket of a server, or
	Command []string      // program with its arguments, started for each question; no shell
	Stages  []string      // when it is asked
	Timeout time.Duration // for one answer, waiting for a turn included
	Max     int           // questions open at once
}

// Request is one question. Facts that are not known yet are left out.
type Request struct {
	Version  int      `json:"version"` // 1
	Stage    string   `json:"stage"`
	Session  string   `json:"session"` // the same in all questions about one connection
	Role     string   `json:"role"`
	Peer     string   `json:"peer,omitempty"` // address:port
	IP       string   `json:"ip,omitempty"`
	UID      *int     `json:"uid,omitempty"` // of a local process
	Helo     string   `json:"helo,omitempty"`
	TLS      string   `json:"tls,omitempty"`
	User     string   `json:"user,omitempty"` // who authenticated
	From     *string  `json:"from,omitempty"` // reverse-path; "" is the null one
	To       string   `json:"to,omitempty"`   // the recipient in question
	Rcpts    []string `json:"rcpts,omitempty"`
	Size     int64    `json:"size,omitempty"` // as declared, of a message as it is
	Body     string   `json:"body,omitempty"`
	SMTPUTF8 bool     `json:"smtputf8,omitempty"`
	ID       string   `json:"id,omitempty"`
	Header   string   `json:"header,omitempty"` // of the message; at most 64 KiB of it
}

// The verdicts.
const (
	Accept  = "accept"  // no objection
	Reject  = "reject"  // for good
	Defer   = "defer"   // try again later
	Discard = "discard" // say yes and throw the message away
	Hold    = "hold"    // queue it, and let a person decide
)

// Answer is what the hook says.
type Answer struct {
	Verdict   string   `json:"verdict"`
	Code      int      `json:"code"`       // basic code of a refusal
	DSN       string   `json:"dsn"`        // enhanced code of a refusal
	Reply     string   `json:"reply"`      // what the client is told
	AddHeader []string `json:"add_header"` // whole fields: "X-Spam: yes"
	Why       string   `json:"why"`        // for the log
}

const (
	// MaxHeader is how much of a header a question carries.
	MaxHeader = 64 << 10
	maxAnswer = 64 << 10
)

var errAnswer = errors.New("answer cannot be used")

// Hook asks one program or server. It may be used concurrently.
type Hook struct {
	o     Options
	turns chan struct{}
	idle  chan *conn
}

// New checks o and returns the Hook. Nothing is started or connected yet.
func New(o Options) (*Hook, error) {
	switch {
	case (o.Socket == "") == (len(o.Command) == 0):
		return nil, fmt.Errorf("hook %s: name either a socket or a command", o.Name)
	case o.Socket != "" && !filepath.IsAbs(o.Socket), len(o.Command) > 0 && !filepath.IsAbs(o.Command[0]):
		return nil, fmt.Errorf("hook %s: the path is not absolute", o.Name)
	case o.Timeout <= 0 || o.Max < 1:
		return nil, fmt.Errorf("hook %s: needs a time-out and at least one turn", o.Name)
	}
	for _, s := range o.Stages {
		if !slices.Contains(Stages(), s) {
			return nil, fmt.Errorf("hook %s: unknown stage %q (stages are %s)", o.Name, s, strings.Join(Stages(), ", "))
		}
	}
	return &Hook{o: o, turns: make(chan struct{}, o.Max), idle: make(chan *conn, o.Max)}, nil
}

// Name is the hook's name in logs.
func (h *Hook) Name() string { return h.o.Name }

// Wants tells whether the hook is asked at a stage.
func (h *Hook) Wants(stage string) bool { return slices.Contains(h.o.Stages, stage) }

// Ask puts one question. Any error means that there is no answer, whatever the cause: the
// caller's configured default applies.
func (h *Hook) Ask(ctx context.Context, q *Request) (*Answer, error) {
	q.Version = 1
	line, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("hook %s: %w", h.o.Name, err)
	}
	line = append(line, '\n')
	ctx, cancel := context.WithTimeout(ctx, h.o.Timeout)
	defer cancel()
	select {
	case h.turns <- struct{}{}:
		defer func() { <-h.turns }()
	case <-ctx.Done():
		return nil, fmt.Errorf("hook %s: no turn in time, %d questions are open: %w", h.o.Name, h.o.Max, ctx.Err())
	}
	var a *Answer
	if h.o.Socket != "" {
		a, err = h.askSocket(ctx, line)
	} else {
		a, err = h.run(ctx, line)
	}
	if err != nil {
		return nil, fmt.Errorf("hook %s: %w", h.o.Name, err)
	}
	return a, nil
}

// parse reads an answer and gives its refusal codes that fit.
func parse(line []byte) (*Answer, error) {
	a := &Answer{}
	if err := json.Unmarshal(line, a); err != nil {
		return nil, fmt.Errorf("%w: %w", errAnswer, err)
	}
	class := byte('5')
	switch a.Verdict {
	case Accept, Discard, Hold:
		a.Code, a.DSN, a.Reply = 0, "", ""
		return a, nil
	case Reject:
		if a.Code/100 != 5 {
			a.Code = 550
		}
	case Defer:
		class = '4'
		if a.Code/100 != 4 {
			a.Code = 451
		}
	default:
		return nil, fmt.Errorf("%w: verdict %q", errAnswer, a.Verdict)
	}
	if !envelope.ValidCode(a.DSN) || a.DSN[0] != class {
		a.DSN = string(class) + ".7.1"
	}
	if a.Reply == "" {
		a.Reply = "refused by policy"
	}
	return a, nil
}

// conn is one connection to a server.
type conn struct {
	net.Conn
	br   *bufio.Reader
	used bool
}

// askSocket puts the question on a connection that is idle, or a new one. A server may close
// what is idle at any time, so a kept connection that fails before it answers is replaced once.
func (h *Hook) askSocket(ctx context.Context, line []byte) (*Answer, error) {
	for {
		c, err := h.connect(ctx)
		if err != nil {
			return nil, err
		}
		answer, err := c.ask(ctx, line)
		if err == nil {
			select {
			case h.idle <- c:
			default:
				c.Close()
			}
			return parse(answer)
		}
		c.Close()
		if !c.used || !errors.Is(err, errGone) || ctx.Err() != nil {
			return nil, err
		}
	}
}

func (h *Hook) connect(ctx context.Context) (*conn, error) {
	select {
	case c := <-h.idle:
		c.used = true
		return c, nil
	default:
	}
	var d net.Dialer
	n, err := d.DialContext(ctx, "unix", h.o.Socket)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: n, br: bufio.NewReaderSize(n, 4096)}, nil
}

// errGone says that the connection ended before a single octet of the answer came.
var errGone = errors.New("the server closed the connection without an answer")

// ask writes one line and reads one line.
func (c *conn) ask(ctx context.Context, line []byte) ([]byte, error) {
	end, _ := ctx.Deadline() // Ask has set one
	if err := c.SetDeadline(end); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // fails only once closed
	defer stop()
	if _, err := c.Write(line); err != nil {
		return nil, fmt.Errorf("%w: %w", errGone, err)
	}
	var answer []byte
	for {
		part, err := c.br.ReadSlice('\n')
		answer = append(answer, part...)
		switch {
		case err == nil && c.br.Buffered() > 0:
			return nil, fmt.Errorf("%w: text behind the answer's line", errAnswer)
		case err == nil:
			return answer, nil
		case len(answer) > maxAnswer:
			return nil, fmt.Errorf("%w: longer than %d octets", errAnswer, maxAnswer)
		case errors.Is(err, bufio.ErrBufferFull):
		case len(answer) == 0 && ctx.Err() == nil && !isTimeout(err):
			return nil, fmt.Errorf("%w: %w", errGone, err)
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("%w: it ends without a line end", errAnswer)
		default:
			return nil, err
		}
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// Close closes the idle connections.
func (h *Hook) Close() {
	for {
		select {
		case c := <-h.idle:
			c.Close()
		default:
			return
		}
	}
}
