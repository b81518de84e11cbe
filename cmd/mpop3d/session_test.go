package main

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/handover"
)

// TestSession is one user's session as msession starts it: connected descriptors, an empty
// environment, and at descriptor 3 who it is and what was read too far.
func TestSession(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.deliver(t, letter(1), letter(2))
	for _, c := range []struct {
		name, protocol, pending, say, want, log string
	}{
		{"whole", "pop3", "STAT\r\nDE", "LE 1\r\nQUIT\r\n", "+OK welcome, 2 messages (532 octets)\r\n+OK 2 532\r\n+OK message 1 goes at QUIT\r\n+OK bye, 1 messages left\r\n",
			"msg=session tool=mpop3d peer=192.0.2.7:4711 user=alice@example.test role=pop3s tls=true messages=2 retr=0 top=0 dele=1 "},
		{"another protocol", "imap", "", "QUIT\r\n", "", "the session is one of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			theirs, ours := os.NewFile(uintptr(fds[0]), "session"), os.NewFile(uintptr(fds[1]), "client")
			client, err := net.FileConn(ours)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			ours.Close()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd := s.command("--session")
			cmd.Env, cmd.Dir = []string{}, "/"
			cmd.Stdin, cmd.Stdout, cmd.ExtraFiles = theirs, theirs, []*os.File{r}
			var said strings.Builder
			cmd.Stderr = &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			theirs.Close()
			r.Close()
			state, err := json.Marshal(map[string]any{"role": "pop3s", "utf8": true})
			if err != nil {
				t.Fatal(err)
			}
			facts, err := json.Marshal(handover.Facts{
				Protocol: c.protocol, Address: "alice@example.test", Name: "alice", Home: s.dir, Maildir: s.maildir(),
				Peer: netip.MustParseAddrPort("192.0.2.7:4711"), TLS: &handover.TLS{Version: "TLS 1.3"}, Pending: []byte(c.pending), State: state,
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(facts); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if err := client.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(client, c.say) // a session that has ended takes nothing
			got, _ := io.ReadAll(client)         // nor does it end in good order then
			err = cmd.Wait()
			if string(got) != c.want || (err == nil) != (c.want != "") || !strings.Contains(said.String(), c.log) {
				t.Errorf("%v\nheard %q\nlog %s", err, got, &said)
			}
		})
	}
}
