package daemon

import (
	"os/exec"

	"pennypost/internal/accounts"
	"pennypost/internal/config"
)

// Accounts are the users and aliases of the configuration. Nothing is read before the first
// question.
func Accounts(cfg *config.Config) (*accounts.Accounts, error) {
	getent := ""
	if cfg.Accounts.System {
		// Where there is no getent, /etc/passwd is all there is.
		getent, _ = exec.LookPath("getent")
	}
	return accounts.Open(accounts.Options{
		Domains: cfg.Domains, Postmaster: cfg.Postmaster, Maildirs: cfg.Maildirs,
		Users: cfg.Accounts.Users, UsersMay: cfg.Accounts.UsersMay,
		Secrets: cfg.Accounts.Secrets, Aliases: cfg.Accounts.Aliases,
		System: cfg.Accounts.System, Passwd: "/etc/passwd", Group: "/etc/group", Getent: getent,
		Subaddress: cfg.Accounts.SubaddressSep, CatchAll: cfg.Accounts.CatchAll, Lookup: cfg.Accounts.LookupSocket,
	})
}
