package mailtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// dialogueWait bounds the wait for one line of a server.
const dialogueWait = 10 * time.Second

// Dialogues runs every file that matches glob as a subtest, see Dialogue.
func Dialogues(t *testing.T, glob string, dial func(t *testing.T) net.Conn) {
	t.Helper()
	files, err := filepath.Glob(glob)
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogue matches %s (%v)", glob, err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), filepath.Ext(f)), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			Dialogue(t, f, b, func() net.Conn { return dial(t) })
		})
	}
}

// Dialogue plays a script against a line protocol. Its lines are:
//
//	# text        comment; empty lines are skipped
//	C: text       send text and CRLF
//	C= "text\n"   send exactly this Go string, without a line end
//	S: text       the next line is exactly text
//	S: text...    the next line starts with text
//	S~ regexp     the next line matches
//	S* text       lines up to and including the first that starts with text
//	S!            the server closes the connection
//	C!            close our side for writing
//
// A digit after C or S, as in C2: and S2:, means another connection of the same script, dialled
// when it is first named. Lines are compared without their CRLF, which must be there.
func Dialogue(t testing.TB, name string, script []byte, dial func() net.Conn) {
	t.Helper()
	d := &dialogue{dial: dial, conns: make(map[byte]*dialogueConn)}
	defer d.close()
	for i, line := range strings.Split(string(script), "\n") {
		if line = strings.TrimRight(line, "\r"); line == "" || line[0] == '#' {
			continue
		}
		if err := d.step(line); err != nil {
			t.Fatalf("%s:%d: %s\n%v\n%s", name, i+1, line, err, d.log.String())
		}
	}
}

type dialogue struct {
	dial  func() net.Conn
	conns map[byte]*dialogueConn
	log   bytes.Buffer
}

type dialogueConn struct {
	net.Conn
	br *bufio.Reader
}

func (d *dialogue) close() {
	for _, c := range d.conns {
		c.Close()
	}
}

func (d *dialogue) conn(id byte) *dialogueConn {
	c := d.conns[id]
	if c == nil {
		nc := d.dial()
		c = &dialogueConn{nc, bufio.NewReader(nc)}
		d.conns[id] = c
	}
	return c
}

func (d *dialogue) step(line string) error {
	who, id, rest := line[0], byte('1'), line[1:]
	if rest != "" && rest[0] >= '1' && rest[0] <= '9' {
		id, rest = rest[0], rest[1:]
	}
	if rest == "" || who != 'C' && who != 'S' {
		return fmt.Errorf("no such line: want C or S, a digit or none, and one of \": = ~ * !\" behind")
	}
	op, text := rest[0], strings.TrimPrefix(rest[1:], " ")
	c := d.conn(id)
	// A net.Pipe whose other end is closed takes no deadline, but can still be read to its end.
	if err := c.SetDeadline(time.Now().Add(dialogueWait)); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	if who == 'C' {
		return d.say(c, op, text)
	}
	return d.expect(c, op, text)
}

func (d *dialogue) say(c *dialogueConn, op byte, text string) error {
	switch op {
	case ':':
		text += "\r\n"
	case '=':
		s, err := strconv.Unquote(text)
		if err != nil {
			return fmt.Errorf("not a Go string: %w", err)
		}
		text = s
	case '!':
		return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
	default:
		return fmt.Errorf("no such line: C%c", op)
	}
	fmt.Fprintf(&d.log, "C: %q\n", text)
	_, err := io.WriteString(c, text)
	return err
}

func (d *dialogue) expect(c *dialogueConn, op byte, want string) error {
	if op == '!' {
		b, err := io.ReadAll(c.br)
		if len(b) > 0 {
			return fmt.Errorf("the server goes on with %q", b)
		}
		if err != nil && os.IsTimeout(err) {
			return fmt.Errorf("the server does not close the connection")
		}
		return nil
	}
	for {
		got, err := c.br.ReadString('\n')
		fmt.Fprintf(&d.log, "S: %q\n", got)
		if err != nil {
			return fmt.Errorf("no line: %w", err)
		}
		if !strings.HasSuffix(got, "\r\n") {
			return fmt.Errorf("line does not end in CR LF: %q", got)
		}
		got = strings.TrimSuffix(got, "\r\n")
		ok := false
		switch op {
		case ':':
			ok = got == want
			if p, prefix := strings.CutSuffix(want, "..."); prefix {
				ok = strings.HasPrefix(got, p)
			}
		case '~':
			if ok, err = regexp.MatchString(want, got); err != nil {
				return err
			}
		case '*':
			if ok = strings.HasPrefix(got, want); !ok {
				continue
			}
		default:
			return fmt.Errorf("no such line: S%c", op)
		}
		if !ok {
			return fmt.Errorf("got  %s", got)
		}
		return nil
	}
}
