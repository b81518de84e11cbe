package main

import (
	"pennypost/internal/config"
	"pennypost/internal/hook"
	"pennypost/internal/milter"
	"pennypost/internal/smtpd"
)

// filters are those who have a say beside us: hooks first, for they cost the least.
func filters(cfg *config.Config) ([]smtpd.Filter, error) {
	var list []smtpd.Filter
	hooks, milters := cfg.SMTPD.Filters()
	for _, h := range hooks {
		f := smtpd.Filter{Name: h.Name, Roles: h.Roles, Accept: h.Default == "accept"}
		var err error
		if f.Hook, err = hook.New(hook.Options{
			Name: h.Name, Socket: h.Socket, Command: h.Command, Stages: h.Stages, Timeout: h.Timeout.Std(), Max: h.Max,
		}); err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	for _, m := range milters {
		f := smtpd.Filter{Name: m.Socket, Roles: m.Roles, Accept: m.Default == "accept"}
		var err error
		if f.Milter, err = milter.New(milter.Options{Address: m.Socket, Hostname: cfg.Hostname, Timeout: m.Timeout.Std()}); err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}
