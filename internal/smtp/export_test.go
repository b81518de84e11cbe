package smtp

import "time"

// ParseMailParams reads parameters of MAIL in a session that offers everything, for up to a day.
func ParseMailParams(s string, now time.Time) (*MailOptions, *Answer) {
	x := &Extensions{RequireTLS: true, FutureRelease: 24 * time.Hour, DeliverBy: true, MinBy: time.Minute, Priority: true}
	return parseMailParams(s, true, x, now)
}

// Override is what one attribute of XCLIENT makes of a state.
func Override(attr string) (State, *Answer) {
	var st State
	a := st.override(attr)
	return st, a
}
