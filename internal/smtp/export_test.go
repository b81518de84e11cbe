package smtp

import "time"

// ParseMailParams reads parameters of MAIL in a session that offers everything, for up to a day.
func ParseMailParams(s string, now time.Time) (*MailOptions, *Answer) {
	x := &Extensions{RequireTLS: true, FutureRelease: 24 * time.Hour, DeliverBy: true, MinBy: time.Minute, Priority: true}
	return parseMailParams(s, true, x, now)
}
