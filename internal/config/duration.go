package config

import (
	"fmt"
	"strconv"
	"time"
)

// UnmarshalText reads one or more numbers with a unit: s, m, h, d or w.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

// ParseDuration reads "90s", "15m", "4h", "5d", "2w", sums such as "1h30m", and "0".
func ParseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is no duration: write a number with s, m, h, d or w, as in \"90s\" or \"5d\"", s)
	if s == "0" {
		return 0, nil
	}
	if s == "" {
		return 0, bad
	}
	var sum time.Duration
	for rest := s; rest != ""; {
		i := 0
		for i < len(rest) && rest[i] >= '0' && rest[i] <= '9' {
			i++
		}
		if i == 0 || i == len(rest) {
			return 0, bad
		}
		n, err := strconv.ParseInt(rest[:i], 10, 64)
		unit := unitOf(rest[i:])
		if err != nil || unit == 0 {
			return 0, bad
		}
		rest = rest[i+1:]
		if unit == time.Millisecond {
			rest = rest[1:]
		}
		const most = 100 * 365 * 24 * time.Hour
		if n > int64(most/unit) || sum+time.Duration(n)*unit > most {
			return 0, fmt.Errorf("%q is longer than a hundred years", s)
		}
		sum += time.Duration(n) * unit
	}
	return sum, nil
}

// unitOf names the unit at the start of s; "ms" serves tests, which cannot wait.
func unitOf(s string) time.Duration {
	switch s[0] {
	case 's':
		return time.Second
	case 'm':
		if len(s) > 1 && s[1] == 's' {
			return time.Millisecond
		}
		return time.Minute
	case 'h':
		return time.Hour
	case 'd':
		return 24 * time.Hour
	case 'w':
		return 7 * 24 * time.Hour
	}
	return 0
}

// String writes a duration in the form the file has it, with the largest unit that divides it.
func (d Duration) String() string {
	v := time.Duration(d)
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}} {
		if v > 0 && v%u.unit == 0 {
			return strconv.FormatInt(int64(v/u.unit), 10) + u.name
		}
	}
	return "0"
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Std is d as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// Now returns the clock that key clock names: the system's, one shifted against it, or one that
// stands still.
func (c *Config) Now() func() time.Time {
	shift, still, err := parseClock(c.Clock)
	switch {
	case err != nil || c.Clock == "": // Load has refused a bad one
		return time.Now
	case !still.IsZero():
		return func() time.Time { return still }
	}
	return func() time.Time { return time.Now().Add(shift) }
}

func parseClock(s string) (shift time.Duration, still time.Time, err error) {
	if s == "" {
		return 0, time.Time{}, nil
	}
	if s[0] == '+' || s[0] == '-' {
		shift, err = ParseDuration(s[1:])
		if s[0] == '-' {
			shift = -shift
		}
		return shift, time.Time{}, err
	}
	still, err = time.Parse(time.RFC3339, s)
	return 0, still, err
}
