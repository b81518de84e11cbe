package imapwire

import "time"

// Date takes a date (RFC 9051 §9): 1-Feb-1994, quoted or not.
func (r *Reader) Date() time.Time {
	var b []byte
	if r.Peek() == '"' {
		b = r.Quoted()
	} else {
		b = r.Atom()
	}
	t, err := time.Parse("2-Jan-2006", string(b))
	if err != nil {
		r.Fail("date expected")
	}
	return t
}

const dateTime = "_2-Jan-2006 15:04:05 -0700"

// DateTime takes a date-time: " 1-Feb-1994 21:52:25 -0800" in quotes.
func (r *Reader) DateTime() time.Time {
	b := r.Quoted()
	t, err := time.Parse(dateTime, string(b))
	if err != nil {
		t, err = time.Parse("2-Jan-2006 15:04:05 -0700", string(b)) // one digit for the day
	}
	if err != nil {
		r.Fail("date and time expected")
	}
	return t
}

// AppendDateTime appends t, in its zone, in quotes. A year that four digits do not hold is
// none that a message can have; it becomes the nearest one.
func AppendDateTime(dst []byte, t time.Time) []byte {
	switch y := t.Year(); {
	case y < 1:
		t = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	case y > 9999:
		t = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	dst = append(dst, '"')
	dst = t.AppendFormat(dst, dateTime)
	return append(dst, '"')
}
