package auth

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"pennypost/internal/sasl"
)

// idleTime is for a peer's next request, and for its part of an exchange.
const idleTime = time.Minute

// answerer is the service's end of one connection.
type answerer struct {
	Checker
	redeem bool
	log    *slog.Logger
	open   Server   // the exchange in progress, nil when there is none
	x      Exchange // what open is
}

// Serve answers the requests of one connection with what by says, one after the other, until the
// peer has no more or ctx ends. redeem tells whether the peer may take tickets.
func Serve(ctx context.Context, c net.Conn, by Checker, redeem bool, log *slog.Logger) error {
	s := &answerer{Checker: by, redeem: redeem, log: log}
	l := newLine(c)
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }) // fails only on a closed connection
	defer stop()
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
			a = s.step(ctx, r, from)
		} else {
			a = s.answer(ctx, r, from)
		}
		if err := l.write(a); err != nil {
			return err
		}
	}
}

// answer does everything but SCRAM.
func (s *answerer) answer(ctx context.Context, r request, from netip.Addr) (a reply) {
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
	case !s.redeem:
		s.log.Warn("ticket refused: the peer may not take any")
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
func (s *answerer) logFailure(op, login, from string, err error) {
	log := s.log.With("user", login[:min(len(login), 128)], "peer", from, "op", op)
	switch {
	case errors.Is(err, sasl.ErrRefused):
		log.Info("login refused")
	case errors.Is(err, ErrSlow), errors.Is(err, ErrBusy):
		log.Warn("login put off", "err", err)
	case !errors.Is(err, sasl.ErrSyntax):
		log.Error("password check failed", "err", err)
	}
}

// step carries an exchange on.
func (s *answerer) step(ctx context.Context, r request, from netip.Addr) reply {
	if r.Op == opSCRAM {
		x := Exchange{Mechanism: r.Mechanism, From: from, Ticket: r.WantTick}
		if r.Binding != nil {
			x.Binding = Binding(*r.Binding)
		}
		var err error
		if s.open, err = s.SCRAM(ctx, x); err != nil {
			s.open = nil
			return failure(err)
		}
		s.x = x
	}
	open := s.open
	if open == nil {
		return reply{Error: errSyntax, Text: "no exchange to respond to"}
	}
	if r.Response == nil {
		r.Response = []byte{}
	}
	challenge, done, err := open.Next(ctx, r.Response)
	switch {
	case err != nil:
		s.open = nil
		var login string
		if n, ok := open.(sasl.Claimer); ok {
			login = n.Claimed()
		}
		s.logFailure(s.x.Mechanism, login, addr(s.x.From), err)
		return failure(err)
	case done:
		s.open = nil
		return reply{OK: true, User: open.User(), Ticket: open.Ticket()}
	}
	return reply{Challenge: challenge}
}
