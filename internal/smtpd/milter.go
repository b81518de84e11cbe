package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"strconv"
	"strings"

	"pennypost/internal/envelope"
	"pennypost/internal/milter"
	"pennypost/internal/smtp"
	"pennypost/internal/submit"
)

var errMilterGone = errors.New("the connection to the milter is lost")

// milterAsker puts the transactions of a session to a milter. The milter is connected to at the
// first MAIL: most clients that never get there are not worth its attention.
type milterAsker struct {
	s   *session
	c   *milter.Client
	ses *milter.Session // nil: not connected
	as  milter.Peer     // what it was told of the client
}

func (a *milterAsker) peer(ctx context.Context) milter.Peer {
	s := a.s
	p := milter.Peer{Addr: s.st.Peer.Addr, Local: s.o.Role == Local, Helo: s.st.Helo, User: s.st.User}
	if s.visit != nil {
		p.Name = s.visit.Name(ctx)
	}
	if p.Local {
		p.User = s.user
	}
	if cs := s.st.TLS; cs != nil {
		p.TLS, p.Suite = strings.Replace(tls.VersionName(cs.Version), "TLS ", "TLSv", 1), tls.CipherSuiteName(cs.CipherSuite)
	}
	return p
}

// rule turns a milter's verdict into a ruling. A session that failed is not used again.
func (a *milterAsker) rule(r milter.Reply, err error) (ruling, error) {
	if err != nil {
		a.close()
		return ruling{}, err
	}
	switch r.Action {
	case milter.Accept:
		return ruling{pass: true}, nil
	case milter.Discard:
		return ruling{drop: true}, nil
	case milter.Reject, milter.Defer:
		return ruling{refuse: &smtp.Answer{Code: r.Code, Enhanced: r.DSN, Text: r.Text}}, nil
	}
	return ruling{}, nil
}

func (a *milterAsker) connect(context.Context) (ruling, error) { return ruling{}, nil }

func (a *milterAsker) mail(ctx context.Context, from envelope.Address, o *smtp.MailOptions) (ruling, error) {
	if p := a.peer(ctx); a.ses == nil || p != a.as {
		a.close() // HELO, TLS or the user is another now
		ses, err := a.c.Open(ctx, p)
		if err != nil {
			return ruling{}, err
		}
		a.ses, a.as = ses, p
	}
	var args []string
	if o.Size > 0 {
		args = append(args, "SIZE="+strconv.FormatInt(o.Size, 10))
	}
	if o.Body != "" {
		args = append(args, "BODY="+o.Body)
	}
	if o.SMTPUTF8 {
		args = append(args, "SMTPUTF8")
	}
	return a.rule(a.ses.Begin(ctx, from.String(), args))
}

func (a *milterAsker) rcpt(ctx context.Context, to envelope.Address) (ruling, error) {
	if a.ses == nil {
		return ruling{}, errMilterGone
	}
	return a.rule(a.ses.Rcpt(ctx, to.String(), nil))
}

func (a *milterAsker) data(context.Context) (ruling, error) { return ruling{}, nil }

func (a *milterAsker) message(ctx context.Context, v *submit.Sealed, header []byte) (ruling, error) {
	if a.ses == nil {
		return ruling{}, errMilterGone
	}
	body, err := v.Body()
	if err != nil {
		return ruling{}, err
	}
	defer body.Close()
	env := v.Envelope()
	reply, changes, err := a.ses.Message(ctx, milter.Message{
		ID: env.ID, Header: header, Body: body, AsIs: env.EOL == envelope.EOLWire,
	})
	r, err := a.rule(reply, err)
	r.changes = changes
	return r, err
}

func (a *milterAsker) reset() {
	if a.ses != nil && a.ses.Abort() != nil {
		a.close()
	}
}

func (a *milterAsker) close() {
	if a.ses != nil {
		a.ses.Close()
		a.ses = nil
	}
}
