package login

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"pennypost/internal/auth"
	"pennypost/internal/sasl"
)

// Class is a kind of failure that protocols have a code for.
type Class int

// Kinds of failure.
const (
	Temporary Class = iota // not known at the moment: also what has no class
	Refused                // wrong name or password
	Slow                   // too many wrong passwords before: not looked at
	Busy                   // too many logins at once
	Syntax                 // the client's words do not fit the mechanism
	NeedTLS
	Unknown // no such mechanism here
)

// ClassOf tells how to answer an error of this package.
func ClassOf(err error) Class {
	for _, c := range []struct {
		err   error
		class Class
	}{
		{sasl.ErrRefused, Refused}, {auth.ErrSlow, Slow}, {auth.ErrBusy, Busy},
		{sasl.ErrSyntax, Syntax}, {sasl.ErrNeedTLS, NeedTLS}, {ErrUnknown, Unknown},
	} {
		if errors.Is(err, c.err) {
			return c.class
		}
	}
	return Temporary
}

// failed logs why a login failed. The line "login refused" names the client's true address; it is
// what a fail2ban filter reads, so its words and their order stay.
func (s *Session) failed(ctx context.Context, mechanism, claimed string, err error) {
	attrs := s.attrs(mechanism, claimed)
	switch ClassOf(err) {
	case Refused:
		s.o.Log.LogAttrs(ctx, slog.LevelWarn, "login refused", attrs...)
		s.pause(ctx)
	case Slow:
		s.o.Log.LogAttrs(ctx, slog.LevelWarn, "login put off", attrs...)
	case Syntax:
	default:
		s.o.Log.LogAttrs(ctx, slog.LevelError, "password check failed", append(attrs, slog.Any("err", err))...)
	}
}

func (s *Session) accepted(ctx context.Context, mechanism, user string) {
	s.o.Log.LogAttrs(ctx, slog.LevelInfo, "login", append(s.attrs(mechanism, user), slog.Bool("tls", s.c.TLS != nil))...)
}

func (s *Session) attrs(mechanism, user string) []slog.Attr {
	if len(user) > 300 {
		user = user[:300] + "..."
	}
	return []slog.Attr{
		slog.String("peer", s.c.Peer), slog.String("user", user),
		slog.String("role", s.o.Role), slog.String("mechanism", mechanism),
	}
}

// pause makes the next guess wait.
func (s *Session) pause(ctx context.Context) {
	if s.o.Delay <= 0 {
		return
	}
	t := time.NewTimer(s.o.Delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
