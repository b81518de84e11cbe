package main

import (
	"context"
	"os"

	"pennypost/internal/config"
	"pennypost/internal/milter"
)

// filters looks for those whom msmtpd asks: programs, and servers, which have to answer.
func (k *checker) filters(ctx context.Context, cfg *config.Config) {
	hooks, milters := cfg.SMTPD.Filters()
	for _, h := range hooks {
		thing := "smtpd.hook " + h.Name
		if h.Socket != "" {
			if err := reach(ctx, h.Socket); err != nil {
				k.fail(thing, h.Socket+": "+err.Error(), "start its server: "+unanswered(h.Default))
				continue
			}
			k.ok(thing, h.Socket)
			continue
		}
		switch fi, err := os.Stat(h.Command[0]); {
		case err != nil:
			k.fail(thing, h.Command[0]+": "+cause(err), "install it: "+unanswered(h.Default))
		case fi.IsDir() || fi.Mode()&0o111 == 0:
			k.fail(thing, h.Command[0]+" is no program", "chmod +x it: "+unanswered(h.Default))
		default:
			k.ok(thing, h.Command[0])
		}
	}
	for _, m := range milters {
		if err := negotiate(ctx, m.Socket, cfg.Hostname); err != nil {
			k.fail("smtpd.milter "+m.Socket, err.Error(), "start it: "+unanswered(m.Default))
			continue
		}
		k.ok("smtpd.milter", m.Socket)
	}
}

// unanswered says what comes of mail meanwhile.
func unanswered(def string) string {
	if def == "accept" {
		return "until then mail is taken without it"
	}
	return "until then mail is deferred"
}

// negotiate has a milter say what it can do, and takes leave.
func negotiate(ctx context.Context, address, hostname string) error {
	c, err := milter.New(milter.Options{Address: address, Hostname: hostname, Timeout: patience})
	if err != nil {
		return err
	}
	s, err := c.Open(ctx, milter.Peer{})
	if err != nil {
		return err
	}
	s.Close()
	return nil
}
