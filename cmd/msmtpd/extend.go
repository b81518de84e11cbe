package main

import (
	"pennypost/internal/config"
	"pennypost/internal/daemon"
	"pennypost/internal/smtpd"
	"pennypost/internal/spool"
)

// extensions are what sessions offer beside the usual. Without a spool nobody can be told to
// start a queue.
func extensions(cfg *config.Config, sp *spool.Spool) (smtpd.Extend, error) {
	x := smtpd.Extend{HoldMax: cfg.SMTPD.HoldMax.Std(), MinBy: cfg.SMTPD.DeliverBy.Std()}
	var err error
	if x.XClientFrom, err = daemon.Prefixes("smtpd.xclient_from", cfg.SMTPD.XClientFrom); err != nil {
		return x, err
	}
	x.ETRNFrom, err = daemon.Prefixes("smtpd.etrn_from", cfg.SMTPD.ETRNFrom)
	if sp != nil {
		x.Flush = sp.PokeDomain
	}
	return x, err
}
