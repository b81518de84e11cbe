package main

import (
	"os"

	"pennypost/internal/config"
	"pennypost/internal/smtpd"
)

// logins looks at the files and programs of [smtpd.auth].
func (k *checker) logins(cfg *config.Config) {
	a := cfg.SMTPD.Auth
	for _, t := range []struct {
		key, path string
		table     *smtpd.Table
	}{
		{"smtpd.auth.senders", a.Senders, smtpd.NewSenders(a.Senders, cfg.Domains[0])},
		{"smtpd.auth.certificates", a.Certificates, smtpd.NewCertificates(a.Certificates, cfg.Domains[0])},
	} {
		if t.path == "" {
			continue
		}
		if err := t.table.Check(); err != nil {
			k.fail(t.key+" "+t.path, cause(err), "correct it: until then, what needs it is deferred")
			continue
		}
		k.ok(t.key, t.path)
	}
	if len(a.TokenCommand) > 0 {
		prog := a.TokenCommand[0]
		if fi, err := os.Stat(prog); err != nil {
			k.fail("smtpd.auth.token_command "+prog, cause(err), "install it, or remove the key")
		} else if fi.Mode()&0o111 == 0 || fi.IsDir() {
			k.fail("smtpd.auth.token_command "+prog, "is no program", "chmod +x it")
		}
	}
	if s := a.TokenSocket; s != "" {
		if _, err := os.Stat(s); err != nil {
			k.warn("smtpd.auth.token_socket "+s, cause(err), "start its server: until then, tokens are refused for now")
		}
	}
}
