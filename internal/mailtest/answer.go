package mailtest

import (
	"bufio"
	"net"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdAnswer stands for a program that somebody else wrote, which answers questions on a socket.
func cmdAnswer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: answer SOCKET FILE, or answer -leave SOCKET")
	}
	s := stateOf(ts)
	if args[0] == "-leave" {
		l := s.answers[ts.MkAbs(args[1])]
		if l == nil {
			ts.Fatalf("nobody answers on %s", args[1])
		}
		l.SetUnlinkOnClose(false)
		ts.Check(l.Close())
		return
	}
	path, file := ts.MkAbs(args[0]), ts.MkAbs(args[1])
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		ts.Check(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	ts.Check(err)
	s.answers[path] = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(c, file)
		}
	}()
}

// answer serves one connection.
func answer(c net.Conn, file string) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		q, err := r.ReadString('\n')
		if err != nil {
			return
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return
		}
		reply := ""
		for l := range strings.Lines(string(data)) {
			if word, rest, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " "); word != "" && strings.Contains(q, word) {
				reply = rest
				break
			}
		}
		if reply == "" {
			return
		}
		if reply == "-" {
			continue
		}
		if _, err := c.Write([]byte(reply + "\n")); err != nil {
			return
		}
	}
}
