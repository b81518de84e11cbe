package main

import (
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/pop3"
)

// pop3 looks at what mpop3d would refuse, or should not be told.
func (k *checker) pop3(cfg *config.Config) {
	p := cfg.POP3
	if _, err := pop3.ParseFormat(p.UIDL); err != nil {
		k.fail("pop3.uidl "+p.UIDL, cause(err), "write it as Dovecot's pop3_uidl_format is: until then mpop3d does not start")
	}
	for _, l := range p.Listen {
		switch {
		case cfg.TLS.HasCerts():
		case l.Role == pop3.TLS:
			k.fail("pop3.listen "+l.Addr, "has no certificate", "set tls.cert and tls.key: until then mpop3d does not start")
		case len(p.ClearFrom) == 0:
			k.warn("pop3.listen "+l.Addr, "lets nobody log in: there is no certificate for STLS", "set tls.cert and tls.key")
		}
	}
	nets, err := daemon.Prefixes("pop3.clear_from", p.ClearFrom)
	if err != nil {
		return // the configuration was not read then
	}
	for _, n := range nets {
		if !n.Addr().IsLoopback() {
			k.warn("pop3.clear_from "+n.String(), "passwords of these clients travel in clear", "have them use TLS, unless something else encrypts the way")
		}
	}
}
