package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/envelope"
	"pennypost/internal/resolve"
	"pennypost/internal/smtp"
)

// maxSessions bounds the connections one attempt opens: a domain with many broken hosts must
// not hold a worker for hours.
const maxSessions = 10

// headStart is how long an address has the field to itself before the next one is tried beside
// it, after RFC 8305 §5 (which the mail of a slow network must not suffer from).
const headStart = 300 * time.Millisecond

// failure is one address that gave no session.
type failure struct {
	addr   netip.Addr
	relay  string
	status envelope.Status
	script []string
}

// session returns a session with h, kept or new. The failures on the way are returned in both
// cases; with no session they are all that happened.
func (a *attempt) session(ctx context.Context, h *resolve.Host, addrs []netip.Addr) (*session, []failure) {
	if s := a.kept(h, addrs); s != nil {
		return s, nil
	}
	var fails []failure
	for a.opened < maxSessions && ctx.Err() == nil && (len(addrs) > 0 || a.hop.socket != "") {
		conn, addr, bad := a.dial(ctx, h, addrs)
		for _, f := range bad {
			addrs = without(addrs, f.addr)
		}
		fails = append(fails, bad...)
		if conn == nil {
			break
		}
		a.opened++
		s, f := a.open(ctx, h, conn, addr)
		if s != nil {
			a.dead.unset(s.key.addr)
			return s, fails
		}
		if f.again { // TLS failed where clear text is allowed: the same address, once, without
			a.noTLS = true
			a.tried = append(a.tried, f.relay+": "+f.status.Reply+"; trying without TLS")
			continue
		}
		fails = append(fails, f.failure)
		addrs = without(addrs, addr)
		if a.hop.socket != "" {
			break
		}
	}
	if len(fails) == 0 {
		st := envelope.Defer("4.4.1", "too many hosts failed in this attempt")
		if ctx.Err() != nil {
			st.Reply = "the attempt was broken off"
		}
		fails = append(fails, failure{relay: h.Name, status: st})
	}
	return nil, fails
}

// kept looks for an idle session with one of the addresses.
func (a *attempt) kept(h *resolve.Host, addrs []netip.Addr) *session {
	if a.hop.socket != "" {
		return a.pool.take(a.key(h, netip.Addr{}))
	}
	for _, ip := range addrs {
		if s := a.pool.take(a.key(h, ip)); s != nil {
			return s
		}
	}
	return nil
}

func (a *attempt) key(h *resolve.Host, ip netip.Addr) sessionKey {
	k := sessionKey{addr: a.hop.socket, name: h.Name, tls: a.tlsMode(), auth: a.policy.Auth, lmtp: a.hop.lmtp}
	if k.addr == "" {
		k.addr = join(ip, a.hop.port)
	}
	return k
}

// tlsMode is the policy of this message: REQUIRETLS overrides the next hop's.
func (a *attempt) tlsMode() string {
	if a.req.TLS && a.req.From != "" && a.policy.TLS != TLSImplicit {
		return TLSVerify
	}
	return a.policy.TLS
}

// relayName is how results and logs name a host.
func (a *attempt) relayName(h *resolve.Host, ip netip.Addr) string {
	if a.hop.socket != "" {
		return a.hop.socket
	}
	if strings.HasPrefix(h.Name, "[") || h.Name == ip.String() {
		return join(ip, a.hop.port)
	}
	return fmt.Sprintf("%s[%s]:%d", h.Name, ip, a.hop.port)
}

type dialed struct {
	conn net.Conn
	ip   netip.Addr
	err  error
}

// dial connects to the first address that answers. The next one is tried when the one before
// has failed or has let headStart pass.
func (a *attempt) dial(ctx context.Context, h *resolve.Host, addrs []netip.Addr) (net.Conn, netip.Addr, []failure) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if a.hop.socket != "" {
		d := a.connect(ctx, "unix", a.hop.socket, netip.Addr{})
		if d.err != nil {
			return nil, netip.Addr{}, []failure{a.refused(h, d)}
		}
		return d.conn, d.ip, nil
	}
	results := make(chan dialed)
	started, open := 0, 0
	var fails []failure
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer func() {
		go func() { // the losers of the race
			for range open {
				if d := <-results; d.conn != nil {
					_ = d.conn.Close() // never used
				}
			}
		}()
	}()
	for started < len(addrs) || open > 0 {
		select {
		case <-timer.C:
			if started < len(addrs) {
				ip := addrs[started]
				go func() { results <- a.connect(ctx, "tcp", join(ip, a.hop.port), ip) }()
				started, open = started+1, open+1
				timer.Reset(headStart)
			}
		case d := <-results:
			open--
			if d.err == nil {
				return d.conn, d.ip, fails
			}
			fails = append(fails, a.refused(h, d))
			timer.Reset(0)
		}
	}
	return nil, netip.Addr{}, fails
}

func (a *attempt) connect(ctx context.Context, network, addr string, ip netip.Addr) dialed {
	d := net.Dialer{Timeout: a.o.Timeouts.Connect}
	if b := a.o.Bind; b.IsValid() && ip.IsValid() && b.Is4() == ip.Is4() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(b, 0))
	}
	conn, err := d.DialContext(ctx, network, addr)
	return dialed{conn, ip, err}
}

// refused is the failure of an address that cannot be connected to.
func (a *attempt) refused(h *resolve.Host, d dialed) failure {
	why := d.err.Error()
	var ne net.Error
	var errno syscall.Errno
	switch {
	case errors.As(d.err, &ne) && ne.Timeout():
		why = "no answer in time"
	case errors.As(d.err, &errno):
		why = errno.Error()
	}
	f := failure{addr: d.ip, relay: a.relayName(h, d.ip), status: envelope.Defer("4.4.1", "cannot connect: "+why)}
	if !errors.Is(d.err, context.Canceled) {
		a.dead.set(a.key(h, d.ip).addr)
	}
	return f
}

// openFailure is the failure of an address that was connected to.
type openFailure struct {
	failure
	again bool // worth another connection without TLS
}

// open makes a session of a connection: greeting, EHLO, TLS, AUTH.
func (a *attempt) open(ctx context.Context, h *resolve.Host, conn net.Conn, ip netip.Addr) (*session, openFailure) {
	s := &session{key: a.key(h, ip), relay: a.relayName(h, ip)}
	mode := a.tlsMode()
	fail := func(st envelope.Status, again bool) (*session, openFailure) {
		f := openFailure{failure{addr: ip, relay: s.relay, status: st}, again}
		if s.client != nil {
			f.script = s.client.Transcript()
			s.client.Close()
		} else {
			_ = conn.Close() // nothing was said on it
		}
		return nil, f
	}
	if mode == TLSImplicit {
		t, err := a.handshake(ctx, conn, h, true, &s.tls)
		if err != nil {
			return fail(envelope.Defer("4.7.5", "TLS: "+err.Error()), false)
		}
		conn = t
	}
	var err error
	if s.client, err = smtp.NewClient(ctx, conn, a.hop.lmtp, a.o.Timeouts); err != nil {
		a.dead.set(s.key.addr)
		return fail(openStatus(err), false)
	}
	if err = s.client.Hello(a.helo()); err != nil {
		return fail(openStatus(err), false)
	}
	if mode != TLSImplicit && mode != TLSNone && !a.noTLS {
		if st, again := a.startTLS(ctx, h, s, mode); st.Verdict != "" {
			return fail(st, again)
		}
	}
	if st := a.authenticate(s, ip); st.Verdict != "" {
		return fail(st, false)
	}
	return s, openFailure{}
}

func (a *attempt) helo() string {
	if a.o.Helo == "" {
		return "localhost"
	}
	return a.o.Helo
}

// startTLS brings s under TLS as far as the policy asks. A zero status means it may go on.
func (a *attempt) startTLS(ctx context.Context, h *resolve.Host, s *session, mode string) (st envelope.Status, again bool) {
	must := mode == TLSEncrypt || mode == TLSVerify
	required := a.req.TLS && a.req.From != ""
	if !s.client.Abilities().StartTLS {
		return a.noTLSStatus(must, required, "TLS is asked for, but the peer does not offer STARTTLS"), false
	}
	err := s.client.StartTLS(func(c net.Conn) (net.Conn, error) {
		return a.handshake(ctx, c, h, mode == TLSVerify, &s.tls)
	})
	var refusal *smtp.Refusal
	switch {
	case err == nil:
	case errors.As(err, &refusal):
		return a.noTLSStatus(must, required, "TLS is asked for, but "+refusal.Error()), false
	case must:
		st = a.noTLSStatus(true, required, err.Error())
		if !required {
			st.Code = "4.7.5"
		}
		return st, false
	default:
		return envelope.Defer("4.7.5", err.Error()), true
	}
	if err := s.client.Hello(a.helo()); err != nil {
		return openStatus(err), false
	}
	return envelope.Status{}, false
}

// noTLSStatus is what missing TLS means: for REQUIRETLS an end (RFC 8689 §4.2.1), for a policy of
// ours a deferral, since an attacker can make it so and an admin can mend it.
func (a *attempt) noTLSStatus(must, required bool, why string) envelope.Status {
	switch {
	case required:
		return envelope.Fail("5.7.10", why)
	case must:
		return envelope.Defer("4.7.4", why)
	}
	return envelope.Status{}
}

// authenticate proves who we are where credentials are configured. Wrong ones are the admin's
// mistake, which must not bounce mail.
func (a *attempt) authenticate(s *session, ip netip.Addr) envelope.Status {
	if a.policy.Auth == "" {
		return envelope.Status{}
	}
	if s.tls == "" && a.policy.TLS != TLSNone && a.hop.socket == "" && !ip.IsLoopback() {
		return envelope.Defer("4.7.0", "the password is not sent without TLS (tls = \"none\" for this next hop allows it)")
	}
	user, password, err := credentials(a.policy.Auth)
	if err != nil {
		return envelope.Defer("4.3.5", "credentials: "+err.Error())
	}
	err = s.client.Auth(user, password)
	var refusal *smtp.Refusal
	switch {
	case err == nil:
		return envelope.Status{}
	case errors.As(err, &refusal):
		return envelope.Status{Verdict: envelope.Deferred, Code: "4.7.8", Reply: refusal.Reply.String(), Remote: true}
	case errors.Is(err, smtp.ErrNoMechanism):
		return envelope.Defer("4.7.0", err.Error())
	}
	return smtp.BrokenStatus(err)
}

// credentials reads USER:PASSWORD from the first line of a file.
func credentials(path string) (user, password string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	user, password, ok := strings.Cut(strings.TrimSuffix(line, "\r"), ":")
	if !ok || user == "" {
		return "", "", fmt.Errorf("%s: the first line is not USER:PASSWORD", path)
	}
	return user, password, nil
}

// openStatus is the status of a session that did not begin. A peer that refuses everybody may
// think otherwise tomorrow, so that is a deferral, but for 521, by which a host says that it
// never takes mail (RFC 7504 §3).
func openStatus(err error) envelope.Status {
	var refusal *smtp.Refusal
	if !errors.As(err, &refusal) {
		return smtp.BrokenStatus(err)
	}
	st := envelope.Status{Verdict: envelope.Deferred, Code: refusal.Reply.Enhanced, Reply: refusal.Reply.String(), Remote: true}
	if refusal.Reply.Code == 521 {
		st.Verdict, st.Code = envelope.Failed, "5.3.2"
	} else if st.Code == "" || st.Code[0] != '4' {
		st.Code = "4.3.2"
	}
	return st
}

// handshake makes TLS of c and says in state how.
func (a *attempt) handshake(ctx context.Context, c net.Conn, h *resolve.Host, verify bool, state *string) (net.Conn, error) {
	name := strings.Trim(strings.TrimPrefix(h.Name, "[IPv6:"), "[]")
	var verified error
	conf := &tls.Config{
		ServerName:         name, // the library sends it as SNI when it is no address
		InsecureSkipVerify: true, // VerifyConnection does it, so that "may" and "encrypt" can tell
		MinVersion:         tls.VersionTLS12,
		VerifyConnection: func(cs tls.ConnectionState) error {
			verified = a.roots.verify(cs, name)
			if verify {
				return verified
			}
			return nil
		},
	}
	if a.policy.TLS == TLSMay && !verify {
		conf.MinVersion = tls.VersionTLS10 // RFC 7435 §3: old TLS is better than clear text
	}
	t := tls.Client(c, conf)
	ctx, cancel := context.WithTimeout(ctx, a.o.Timeouts.Command)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	cs := t.ConnectionState()
	trust := " verified"
	if verified != nil {
		trust = " unverified"
	}
	*state = strings.Replace(tls.VersionName(cs.Version), "TLS 1", "TLSv1", 1) + " " + tls.CipherSuiteName(cs.CipherSuite) + trust
	return t, nil
}
