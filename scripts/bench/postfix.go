package main

import (
	"fmt"
	"os"
	"path/filepath"

	"pennypost/internal/mailtest"
)

// postfixMissing says why there is no Postfix to compare with; "" where there is.
func postfixMissing() string {
	if why := mailtest.PostfixMissing(); why != "" || have("smtp-source") {
		return why
	}
	return "smtp-source is not installed"
}

// postfixConf is what the runs need besides: we may send anywhere, and no limit is in the way.
const postfixConf = `mynetworks = 127.0.0.0/8
virtual_mailbox_limit = 0
transport_maps = inline:{ sink.test=smtp:[127.0.0.1]:%[1]d, .sink.test=smtp:[127.0.0.1]:%[1]d }
smtpd_client_connection_count_limit = 0
`

// startPostfix runs a private Postfix.
func (b *bench) startPostfix() (*peer, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := mailtest.StartPostfix(mailtest.PostfixOptions{
		Dir: filepath.Join(b.dir, "postfix"), Name: "bench", Port: port, Domain: "example.test", User: "alice",
		More: fmt.Sprintf(postfixConf, b.sink),
	})
	if err != nil {
		return nil, err
	}
	return &peer{
		name: "postfix", addr: p.Addr, maildir: p.Mail,
		sendmail: []string{"/usr/sbin/sendmail", "-C", p.Conf},
		env:      os.Environ(),
		pids:     func() []int { return withChildren(readPids(p.Pid)) },
		stop:     p.Stop,
	}, nil
}
