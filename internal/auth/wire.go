package auth

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"pennypost/internal/sasl"
)

// maxLine bounds a line of mauth(7): a password of 1024 octets, escaped, is the longest part.
const maxLine = 16 << 10

// Times of a connection: between two requests, and for the client's part of an exchange.
const (
	idleTime  = time.Minute
	writeTime = 10 * time.Second
)

// The words of "op".
const (
	opPassword   = "password"
	opSCRAM      = "scram"
	opResponse   = "response"
	opMechanisms = "mechanisms"
	opRedeem     = "redeem"
)

// request is a line from the client.
type request struct {
	Op        string       `json:"op"`
	Login     string       `json:"login,omitempty"`
	Password  string       `json:"password,omitempty"`
	From      string       `json:"from,omitempty"`
	Mechanism string       `json:"mechanism,omitempty"`
	Binding   *wireBinding `json:"binding,omitempty"`
	Response  []byte       `json:"response,omitempty"`
	WantTick  bool         `json:"want_ticket,omitempty"`
	Ticket    string       `json:"ticket,omitempty"`
}

type wireBinding struct {
	Type string `json:"type"`
	Data []byte `json:"data"`
}

// reply is a line from the service.
type reply struct {
	OK         bool     `json:"ok,omitempty"`
	User       string   `json:"user,omitempty"`
	Ticket     string   `json:"ticket,omitempty"`
	Challenge  []byte   `json:"challenge,omitempty"`
	Mechanisms []string `json:"mechanisms,omitempty"`
	Error      string   `json:"error,omitempty"`
	Text       string   `json:"text,omitempty"`
}

// The words of "error".
const (
	errRefused   = "refused"
	errSyntax    = "syntax"
	errSlow      = "slow"
	errBusy      = "busy"
	errTemporary = "temporary"
)

// parseRequest reads a line.
func parseRequest(line []byte) (r request, from netip.Addr, err error) {
	if err = json.Unmarshal(line, &r); err != nil {
		return r, from, errors.New("not a JSON object of mauth(7)")
	}
	if r.From != "" {
		if from, err = netip.ParseAddr(r.From); err != nil {
			return r, from, errors.New("from is no IP address")
		}
	}
	switch r.Op {
	case opPassword, opSCRAM, opResponse, opMechanisms, opRedeem:
		return r, from, nil
	}
	return r, from, fmt.Errorf("unknown op %q", r.Op)
}

// failure is the reply to an error.
func failure(err error) reply {
	switch {
	case errors.Is(err, sasl.ErrRefused):
		return reply{Error: errRefused}
	case errors.Is(err, sasl.ErrSyntax):
		return reply{Error: errSyntax}
	case errors.Is(err, ErrSlow):
		return reply{Error: errSlow}
	case errors.Is(err, ErrBusy):
		return reply{Error: errBusy}
	}
	return reply{Error: errTemporary, Text: err.Error()}
}

// err is the error a reply stands for, nil when it stands for none.
func (r reply) err() error {
	switch r.Error {
	case "":
		return nil
	case errRefused:
		return sasl.ErrRefused
	case errSyntax:
		return sasl.ErrSyntax
	case errSlow:
		return temporary(ErrSlow)
	case errBusy:
		return temporary(ErrBusy)
	}
	return temporary(fmt.Errorf("password service: %q", r.Text))
}

// line is one end of a connection.
type line struct {
	c net.Conn
	r *bufio.Reader
}

func newLine(c net.Conn) *line { return &line{c: c, r: bufio.NewReaderSize(c, maxLine)} }

// read returns one line without its end; it is good until the next call.
func (l *line) read() ([]byte, error) {
	b, err := l.r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b[:len(b)-1], []byte("\r")), nil
}

func (l *line) write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := l.c.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	_, err = l.c.Write(append(b, '\n'))
	return err
}

// Serve answers the requests of one connection, one after the other, until the peer has no more
// or ctx ends. redeem tells whether the peer may take tickets.
func (s *Service) Serve(ctx context.Context, c net.Conn, redeem bool) error {
	l := newLine(c)
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }) // fails only on a closed connection
	defer stop()
	var open Server // an exchange in progress
	for {
		if err := c.SetReadDeadline(time.Now().Add(idleTime)); err != nil {
			return nil //nolint:nilerr // the peer is gone between two requests
		}
		if ctx.Err() != nil {
			return nil
		}
		b, err := l.read()
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				return errors.Join(errors.New("line too long"), l.write(reply{Error: errSyntax, Text: "line too long"}))
			}
			return nil //nolint:nilerr // the end, or silence: the client comes again when it has a question
		}
		r, from, err := parseRequest(b)
		if err != nil {
			return errors.Join(err, l.write(reply{Error: errSyntax, Text: err.Error()}))
		}
		var a reply
		if r.Op == opSCRAM || r.Op == opResponse {
			a, open = s.step(ctx, open, r, from)
		} else {
			a = s.answer(ctx, r, from, redeem)
		}
		if err := l.write(a); err != nil {
			return err
		}
	}
}

// answer does everything but SCRAM.
func (s *Service) answer(ctx context.Context, r request, from netip.Addr, redeem bool) (a reply) {
	var err error
	switch {
	case r.Op == opPassword:
		var id Identity
		if id, err = s.Login(ctx, Attempt{Login: r.Login, Password: r.Password, From: from, Ticket: r.WantTick}); err == nil {
			a = reply{OK: true, User: id.Address, Ticket: id.Ticket}
		}
	case r.Op == opMechanisms:
		if a.Mechanisms, err = s.Mechanisms(ctx); err == nil {
			a.OK = true
		}
	case !redeem:
		s.o.Log.Warn("ticket refused: the peer may not take any")
		err = sasl.ErrRefused
	default:
		if a.User, err = s.Redeem(ctx, r.Ticket); err == nil {
			a.OK = true
		}
	}
	if err != nil {
		s.logFailure(r.Op, r.Login, r.From, err)
		return failure(err)
	}
	return a
}

// logFailure says why a login failed, without the password.
func (s *Service) logFailure(op, login, from string, err error) {
	log := s.o.Log.With("user", login[:min(len(login), 128)], "peer", from, "op", op)
	switch {
	case errors.Is(err, sasl.ErrRefused):
		log.Info("login refused")
	case errors.Is(err, ErrSlow), errors.Is(err, ErrBusy):
		log.Warn("login put off", "err", err)
	case !errors.Is(err, sasl.ErrSyntax):
		log.Error("password check failed", "err", err)
	}
}

// step carries an exchange on and returns it as long as it goes on.
func (s *Service) step(ctx context.Context, open Server, r request, from netip.Addr) (reply, Server) {
	var err error
	if r.Op == opSCRAM {
		x := Exchange{Mechanism: r.Mechanism, From: from, Ticket: r.WantTick}
		if r.Binding != nil {
			x.Binding = Binding(*r.Binding)
		}
		if open, err = s.SCRAM(ctx, x); err != nil {
			return failure(err), nil
		}
	}
	if open == nil {
		return reply{Error: errSyntax, Text: "no exchange to respond to"}, nil
	}
	if r.Response == nil {
		r.Response = []byte{}
	}
	challenge, done, err := open.Next(ctx, r.Response)
	switch {
	case err != nil:
		if e, ok := open.(*exchange); ok {
			s.logFailure(e.x.Mechanism, e.login, addr(e.x.From), err)
		}
		return failure(err), nil
	case done:
		return reply{OK: true, User: open.User(), Ticket: open.Ticket()}, nil
	}
	return reply{Challenge: challenge}, open
}
