package message

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

var dovecotN = flag.Int("dovecot.n", 300, "messages to compare with Dovecot, well-formed and broken each")

// dovecot runs IMAP commands in a session of Dovecot over a Maildir of the messages and
// returns its output. A Dovecot does not serve root, so root runs it as nobody.
func dovecot(t *testing.T, msgs []string, commands string) []byte {
	t.Helper()
	doveadm, err := exec.LookPath("doveadm")
	if err != nil {
		t.Skip("no doveadm: nothing to compare with")
	}
	dir, err := os.MkdirTemp("", "message")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, d := range []string{"md/cur", "md/new", "md/tmp", "home"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	conf := fmt.Sprintf("base_dir = %s/run\nstate_dir = %s/run\nlog_path = /dev/stderr\nssl = no\nmail_location = maildir:%s/md\nfirst_valid_uid = 1\nnamespace inbox {\n inbox = yes\n}\n", dir, dir, dir)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	for i, m := range msgs {
		name := fmt.Sprintf("md/cur/%d.M%06dP1.h:2,S", 1_000_000_000+i, i)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(m), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(doveadm, "-c", filepath.Join(dir, "conf"), "exec", "imap")
	cmd.Env = append(os.Environ(), "HOME="+dir+"/home", "USER=nobody")
	if os.Getuid() == 0 {
		err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				err = os.Chown(path, 65534, 65534)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	r, w, err := os.Pipe() // kept open: at its end Dovecot hangs up in the middle of a reply
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	if _, err := w.WriteString("a select inbox\r\n" + commands + "z logout\r\n"); err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = r
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || !bytes.Contains(out, []byte("z OK")) {
		t.Fatalf("doveadm exec imap: %v\n%s\n%s", err, stderr.Bytes(), out[:min(len(out), 1000)])
	}
	return out
}

// canonical rewrites IMAP data with every string in one form.
func canonical(b []byte) string {
	var s strings.Builder
	for i := 0; i < len(b); {
		switch c := b[i]; c {
		case '"':
			var v []byte
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
				v = append(v, b[i])
			}
			i++
			fmt.Fprintf(&s, "%q", v)
		case '{':
			end := bytes.IndexByte(b[i:], '}')
			n, err := strconv.Atoi(string(b[i+1 : i+end]))
			if err != nil {
				return "bad literal in " + string(b)
			}
			i += end + 3
			fmt.Fprintf(&s, "%q", b[i:i+n])
			i += n
		default:
			s.WriteByte(c)
			i++
		}
	}
	return s.String()
}

// fetched splits output into the FETCH replies: message number to the items' text.
func fetched(t *testing.T, out []byte) map[int][]byte {
	t.Helper()
	replies := make(map[int][]byte)
	for len(out) > 0 {
		// One response: a line with the literals in it.
		n := 0
		for {
			i := bytes.IndexByte(out[n:], '\n')
			if i < 0 {
				n = len(out)
				break
			}
			line := out[n : n+i+1]
			n += i + 1
			if j := bytes.LastIndexByte(line, '{'); j >= 0 && bytes.HasSuffix(line, []byte("}\r\n")) {
				lit, err := strconv.Atoi(string(line[j+1 : len(line)-3]))
				if err == nil {
					n += lit
					continue
				}
			}
			break
		}
		var seq int
		if _, err := fmt.Sscanf(string(out[:min(n, 30)]), "* %d FETCH (", &seq); err == nil {
			i := bytes.IndexByte(out, '(')
			replies[seq] = append(replies[seq], bytes.TrimSuffix(out[i+1:n], []byte(")\r\n"))...)
		}
		out = out[n:]
	}
	return replies
}

var noType = regexp.MustCompile(`\("[^"]*" "" NIL`)

func TestDovecotFetch(t *testing.T) {
	t.Run("well-formed", func(t *testing.T) {
		if bad := compare(t, false); bad > 0 {
			t.Errorf("%d of %d messages differ", bad, *dovecotN)
		}
	})
	// Of broken ones a few differ on purpose: we find the addresses behind a broken one, end
	// an enclosed message whose empty line is missing before the boundary's line end, and
	// take the first of two fields.
	t.Run("broken", func(t *testing.T) {
		if bad := compare(t, true); bad > *dovecotN/15+1 {
			t.Errorf("%d of %d messages differ", bad, *dovecotN)
		}
	})
}

// compare returns how many messages Dovecot describes otherwise.
func compare(t *testing.T, wild bool) (bad int) {
	var msgs []string
	for i := range *dovecotN {
		msgs = append(msgs, generate(uint64(i), wild)+" ") // it does not list empty files
	}
	replies := fetched(t, dovecot(t, msgs, "b fetch 1:* (rfc822.size envelope body bodystructure)\r\n"))
	for i, m := range msgs {
		p := parse(t, m)
		want := canonical(replies[i+1])
		if wild && noType.MatchString(want) {
			continue // Dovecot shows a type that is none as it is; to us it is text/plain
		}
		got := append([]byte("RFC822.SIZE "), appendInt(nil, p.HeaderWire+p.BodyWire)...)
		got = AppendEnvelope(append(got, " ENVELOPE "...), p.Fields)
		got = AppendBody(append(got, " BODY "...), p, false)
		got = AppendBody(append(got, " BODYSTRUCTURE "...), p, true)
		g := canonical(got)
		if strings.EqualFold(g, want) { // Dovecot writes a message that is one plain text in lower case
			continue
		}
		if bad++; bad < 5 {
			k := 0
			for k < min(len(g), len(want)) && g[k] == want[k] {
				k++
			}
			k = max(k-60, 0)
			t.Logf("message %d\n got ...%s\nwant ...%s\n%.2000q", i, g[k:min(k+300, len(g))], want[min(k, len(want)):min(k+300, len(want))], m)
		}
	}
	return bad
}

// section returns the wire form of BODY[path], path being numbers and at most one of MIME,
// HEADER and TEXT (RFC 9051 §6.4.5).
func section(t *testing.T, m string, p *Part, path string) (string, bool) {
	t.Helper()
	cut := func(from, to int64) (string, bool) {
		var b strings.Builder
		if _, err := NewWire(strings.NewReader(m), from, to, -1).WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		return b.String(), true
	}
	for i, s := range strings.Split(path, ".") {
		switch s {
		case "MIME", "HEADER":
			return cut(p.Header, p.Body)
		case "TEXT":
			return cut(p.Body, p.End)
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		whole := i == 0
		if i > 0 && p.Kind == Message {
			p, whole = p.Parts[0], true
		}
		switch {
		case p.Kind == Multipart && n <= len(p.Parts):
			p = p.Parts[n-1]
		case whole && p.Kind != Multipart && n == 1:
		default:
			return "", false
		}
	}
	return cut(p.Body, p.End)
}

func TestDovecotSections(t *testing.T) {
	paths := []string{"HEADER", "TEXT", "1", "2", "1.1", "1.MIME", "2.MIME"}
	var msgs []string
	for i := range min(*dovecotN, 100) {
		msgs = append(msgs, generate(uint64(i), false)+" ")
	}
	for _, path := range paths {
		replies := fetched(t, dovecot(t, msgs, "b fetch 1:* (body.peek["+path+"])\r\n"))
		same := 0
		for i, m := range msgs {
			p := parse(t, m)
			if strings.HasSuffix(path, "MIME") && p.Kind != Multipart {
				continue
			}
			got, ok := section(t, m, p, path)
			want, found := strings.CutPrefix(canonical(replies[i+1]), "BODY["+path+"] ")
			if !found {
				t.Fatalf("%q", replies[i+1])
			}
			if !ok {
				continue // NIL or an empty string, as the server likes
			}
			want, err := strconv.Unquote(want)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(path, "MIME") {
				// The empty line of a part without body is the boundary's to Dovecot.
				got, want = strings.TrimRight(got, "\r\n"), strings.TrimRight(want, "\r\n")
			}
			if got != want {
				t.Errorf("message %d: BODY[%s]\n got %.300q\nwant %.300q\n%.1000q", i, path, got, want, m)
			} else {
				same++
			}
		}
		t.Logf("BODY[%s]: %d the same", path, same)
	}
}

// Messages are of one thread by subject (RFC 5256 §3) to us when they are to Dovecot.
func TestDovecotSubjects(t *testing.T) {
	var msgs, subjects []string
	for _, base := range []string{"hello", "Hello World", "[a] b", "=?utf-8?q?gr=C3=BC=C3=9Fe?=", "x (y)", "re", "fwd", "[x", "a]b", "(fwd) x", "re[2", "a: b"} {
		for _, form := range []string{"%s", "Re: %s", "RE[3]: %s", "Fw: re: %s", "[list] Re: %s", "[list] [b] %s", "re: [list] %s (fwd)", "[fwd: %s]", "[Fwd: RE: %s (fwd)] (fwd)", "  Re :  %s  ", "Re [x]: %s", "Re:%s", "fwd:\t%s"} {
			subjects = append(subjects, strings.ReplaceAll(form, "%s", base))
			msgs = append(msgs, "Subject: "+subjects[len(subjects)-1]+"\nDate: Sun, 22 Nov 2026 05:00:00 +0000\n\nx\n")
		}
	}
	out := string(dovecot(t, msgs, "b thread orderedsubject utf-8 all\r\n"))
	_, list, ok := strings.Cut(out, "* THREAD ")
	if !ok {
		t.Fatal(out)
	}
	list, _, _ = strings.Cut(list, "\r\n")
	theirs := make([]int, len(msgs)) // the first message of each one's thread
	depth, first := 0, 0
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '(':
			if depth++; depth == 1 {
				first = 0
			}
		case c == ')':
			depth--
		case c >= '0' && c <= '9':
			n := 0
			for ; i < len(list) && list[i] >= '0' && list[i] <= '9'; i++ {
				n = 10*n + int(list[i]-'0')
			}
			i--
			if first == 0 {
				first = n
			}
			theirs[n-1] = first
		}
	}
	seen := make(map[string]int)
	for i, m := range msgs {
		base := strings.ToLower(parse(t, m).Fields.Decode().Base)
		if seen[base] == 0 {
			seen[base] = i + 1
		}
		if seen[base] != theirs[i] {
			t.Errorf("%q, base %q: with %q; Dovecot: with %q", subjects[i], base, subjects[seen[base]-1], subjects[max(theirs[i]-1, 0)])
		}
	}
}
