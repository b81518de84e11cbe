package message

import (
	"strings"
	"testing"
)

func parse(t testing.TB, msg string) *Part {
	t.Helper()
	p, err := Parse(strings.NewReader(msg), int64(len(msg)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestX(t *testing.T) {
	m := "From: \"A. B\" <a@b.c>\nTo: x@y (Com ment), grp: a@b, c <d@e>;\nSubject: =?utf-8?q?h=C3=A9?= \"foo\"\nDate: Sun, 22 Nov 2026 05:00:00 +0100\nMessage-ID:\n <a@b>\nMIME-Version: 1.0\nContent-Type: multipart/mixed;\n boundary=\"xx\"\n\npre\n--xx\n\nhello\n\n--xx\nContent-Type: message/rfc822\n\nSubject: in\n\nbody\n--xx--\nepi\n"
	p := parse(t, m)
	t.Logf("%s", AppendEnvelope(nil, p.Fields))
	t.Logf("%s", AppendBody(nil, p, true))
	t.Logf("%+v", p.Fields.Decode())
}
