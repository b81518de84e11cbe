package smtp

import (
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int64
		ok   bool
	}{
		{"0", 0, true}, {"1000", 1000, true}, {"00012", 12, true},
		{"9223372036854775807", math.MaxInt64, true}, {"9223372036854775808", math.MaxInt64, true},
		{"99999999999999999999", math.MaxInt64, true},
		{"", 0, false}, {"-1", 0, false}, {"1k", 0, false}, {"999999999999999999999", 0, false},
	} {
		if got, ok := parseSize(c.in); got != c.want || ok != c.ok {
			t.Errorf("parseSize(%q) = %d, %v; want %d, %v", c.in, got, ok, c.want, c.ok)
		}
	}
}

func TestDecodeXtext(t *testing.T) {
	for _, c := range []struct {
		in, want string
		ok       bool
	}{
		{"abc", "abc", true}, {"a+2Bb", "a+b", true}, {"+3D", "=", true}, {"+3d", "=", true}, {"", "", true},
		{"a+2", "", false}, {"a+", "", false}, {"a+GG", "", false}, {"a=b", "", false}, {"a b", "", false}, {"\xc3\xa9", "", false},
	} {
		if got, ok := decodeXtext(c.in); ok != c.ok || ok && got != c.want {
			t.Errorf("decodeXtext(%q) = %q, %v; want %q, %v", c.in, got, ok, c.want, c.ok)
		}
	}
}

func TestParseNotifyAndORcpt(t *testing.T) {
	if l, ok := parseNotify("failure,Delay"); !ok || !reflect.DeepEqual(l, []string{"FAILURE", "DELAY"}) {
		t.Errorf("NOTIFY=failure,Delay: %v %v", l, ok)
	}
	for _, bad := range []string{"", "NEVER,DELAY", "DELAY,NEVER", "DELAY,", "MAYBE", "SUCCESS,SUCCESS"} {
		if _, ok := parseNotify(bad); ok {
			t.Errorf("NOTIFY=%s accepted", bad)
		}
	}
	for in, want := range map[string]string{
		"rfc822;a+2Bb@x.test": "rfc822;a+b@x.test", "RFC822;x": "rfc822;x", `utf-8;\x{E9}@x.test`: `utf-8;\x{E9}@x.test`,
	} {
		if got, ok := parseORcpt(in); !ok || got != want {
			t.Errorf("ORCPT=%s: %q %v, want %q", in, got, ok, want)
		}
	}
	for _, bad := range []string{"x@y", ";x", "rfc822;", "rfc822;a+0Ab", "rfc 822;x", "rfc822;" + strings.Repeat("x", 500)} {
		if _, ok := parseORcpt(bad); ok {
			t.Errorf("ORCPT=%s accepted", bad)
		}
	}
}

func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		a    Answer
		want string
	}{
		{Answer{Code: 250, Text: "ok"}, "250 ok\r\n"},
		{Answer{Code: 214, Enhanced: "2.0.0", Text: "a\nb"}, "214-2.0.0 a\r\n214 2.0.0 b\r\n"},
		{Answer{Code: 550, Enhanced: "5.1.1", Text: "no \r250 evil\x00 \xc3\xa9"}, "550 5.1.1 no ?250 evil? ??\r\n"},
		{Answer{Code: 334}, "334 \r\n"},
	} {
		if got := string(c.a.append(nil)); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	long := Answer{Code: 250, Text: strings.Repeat("x", 2000)}
	if n := len(long.append(nil)); n > 512 {
		t.Errorf("reply line of %d octets", n) // RFC 5321 §4.5.3.1.5
	}
}

func TestProto(t *testing.T) {
	for _, c := range []struct {
		esmtp, tls, utf8 bool
		user, want       string
	}{
		{false, false, false, "", "SMTP"}, {true, false, false, "", "ESMTP"}, {true, false, true, "", "UTF8SMTP"},
		{true, false, false, "u", "ESMTPA"},
	} {
		s := State{ESMTP: c.esmtp, User: c.user}
		if got := s.Proto(c.utf8); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
