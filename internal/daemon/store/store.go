// Package store opens the mail of an account as the configuration says.
package store

import (
	"fmt"
	"log/slog"

	"pennypost/internal/accounts"
	"pennypost/internal/config"
	"pennypost/internal/mailbox"
)

// Open opens the mail of m; the caller closes it.
func Open(cfg *config.Config, m *accounts.Mailbox, log *slog.Logger) (*mailbox.Store, error) {
	o, err := Options(cfg, m, log)
	if err != nil {
		return nil, err
	}
	return mailbox.Open(m.Maildir, o)
}

// Options says how the mail of m is kept.
func Options(cfg *config.Config, m *accounts.Mailbox, log *slog.Logger) (mailbox.Options, error) {
	o := mailbox.Options{
		FSLayout: cfg.Store.Layout == "fs", UTF8: cfg.Store.UTF8, Courier: cfg.Store.Courier,
		Host: cfg.Hostname, Create: cfg.Deliver.Create, Now: cfg.Now(), Log: log,
	}
	if cfg.Store.Escape != "" {
		o.Escape = cfg.Store.Escape[0]
	}
	for _, d := range []struct {
		key, template string
		to            *string
	}{{"store.control", cfg.Store.Control, &o.Control}, {"store.index", cfg.Store.Index, &o.Index}} {
		if d.template == "" {
			continue
		}
		dir, err := m.Expand(d.template)
		if err != nil {
			return o, fmt.Errorf("%s: %w", d.key, err)
		}
		*d.to = dir
	}
	var err error
	o.Limits.Octets, o.Limits.Messages, err = accounts.Quota(m.Extra)
	if err != nil && log != nil {
		log.Error("quota of an account cannot be read", "user", m.Address, "err", err)
	}
	return o, nil
}
