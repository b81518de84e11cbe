package smtp_test

import (
	"strings"
	"testing"

	"pennypost/internal/mailtest"
	"pennypost/internal/smtp"
)

// Replies that came before their commands answer nothing.
func TestEarlyReplies(t *testing.T) {
	step, piped := []string{"SIZE"}, []string{"PIPELINING"}
	for _, c := range []struct {
		name      string
		abilities []string
		script    string
		want      string
	}{
		{"behind EHLO", step, "EHLO => 250 x|250 a|250 b|354 c|250 d", "deferred:4.5.0+other"},
		{"behind EHLO, pipelined", piped, "EHLO => 250-x|250 PIPELINING|250 a|250 b|354 c|250 d", "deferred:4.5.0+other"},
		{"behind MAIL", step, "MAIL => 250 a|250 b", "deferred:4.5.0+other"},
		{"behind DATA", step, "DATA => 354 go|250 taken", "deferred:4.5.0+other"},
		{"behind DATA, pipelined", piped, "DATA => 354 go|250 taken", "deferred:4.5.0+other"},
		{"within the text", piped, "text => 250 taken", "deferred:4.5.0+other"},
		{"a refusal behind DATA", piped, "DATA => 354 go|554 5.7.1 no", "failed:5.7.1"},
		{"closing behind EHLO", step, "EHLO => 250 x|421 4.3.2 good night; close", "deferred:4.3.2+other"},
		{"closing behind EHLO, pipelined", piped, "EHLO => 250-x|250 PIPELINING|421 4.3.2 good night; close", "deferred:4.3.2+other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mailtest.StartPeer(t, mailtest.PeerOptions{Abilities: c.abilities, Script: []string{c.script}})
			x := transaction("b@y.test")
			if strings.HasPrefix(c.script, "text") {
				x.Text = strings.NewReader("A: b\n\n" + strings.Repeat("a line of text\n", 1<<20))
			}
			cl := openClient(t, p, false)
			out, _ := cl.Send(t.Context(), x)
			if summary(out) != c.want || cl.Usable() {
				t.Errorf("got %s, want %s; usable %t: %s", summary(out), c.want, cl.Usable(), out[0].Reply)
			}
			cl.Close()
			p.Close()
			if n := len(p.Messages()); n != 0 {
				t.Errorf("the peer has %d messages", n)
			}
		})
	}
	p := mailtest.StartPeer(t, mailtest.PeerOptions{Script: []string{"greeting => 220 a|250 b"}})
	c, err := smtp.NewClient(t.Context(), dialPeer(t, p), false, patient())
	if err == nil {
		err = c.Hello("me.test")
	}
	if err == nil {
		t.Fatal("a reply behind the greeting is taken for that to EHLO")
	}
	if st := smtp.BrokenStatus(err); st.Code != "4.5.0" || !strings.Contains(st.Reply, `"250 b"`) {
		t.Errorf("behind the greeting: %v, %+v", err, st)
	}
}
