package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
	"pennypost/internal/mailtest"
)

// storeRows are the steps that both servers take one after the other, on Maildirs of their own
// with the same messages. Ours is the store without a protocol, in a process of its own;
// Dovecot's is a session of its imap over a socket pair, whose replies are read and dropped.
var storeRows = []struct {
	name   string
	imap   string // %d is the number of messages that the row speaks of
	budget *budget
}{
	{"open, neither uidlist nor index", "SELECT INBOX", &budget{less: true, ratio: 0.73}},
	{"open again", "SELECT INBOX", &budget{less: true, ratio: 0.68}},
	{"open after a delivery", "SELECT INBOX", &budget{less: true, ratio: 1}},
	{"STORE 1:* +FLAGS", `STORE 1:* +FLAGS.SILENT \Flagged`, &budget{less: true, ratio: 0.8}},
	{"COPY of 10,000", "COPY 1:%d A", &budget{less: true, ratio: 0.7}},
	{"MOVE of 10,000", "MOVE 1:%d A", &budget{less: true, ratio: 0.625}},
	{"EXPUNGE of 10,000", "EXPUNGE", &budget{less: true, ratio: 0.55}},
	{"ENVELOPE of all, first", "FETCH 1:* (ENVELOPE RFC822.SIZE INTERNALDATE)", &budget{less: true, ratio: 0.48}},
	{"ENVELOPE of all, again", "FETCH 1:* (ENVELOPE RFC822.SIZE INTERNALDATE)", &budget{less: true, ratio: 0.33}},
	{"BODYSTRUCTURE of all, after it", "FETCH 1:* BODYSTRUCTURE", &budget{less: true, ratio: 0.08}},
	{"APPEND of 1,000, durable", "", &budget{less: true, ratio: 0.75}},
}

// store compares the mail store with Dovecot's.
func (b *bench) store() error {
	n := b.n(100_000)
	lines := make([]*line, len(storeRows))
	for i, r := range storeRows {
		lines[i] = b.out.line(fmt.Sprintf("store, %d: %s", n, r.name), "ms", r.budget)
		lines[i].against = "dovecot"
	}
	why := mailtest.DovecotMissing()
	if why != "" {
		b.skip("no store to compare with: %s", why)
	}
	for round := range b.rounds {
		dir := filepath.Join(b.dir, fmt.Sprint("store", round))
		if err := os.MkdirAll(dir, 0o755); err != nil { // Dovecot runs as nobody
			return err
		}
		if err := storeMaildir(filepath.Join(dir, "ours"), n, -1); err != nil {
			return err
		}
		out, err := storeSelf(filepath.Join(dir, "ours"))
		if err != nil {
			return fmt.Errorf("ours: %w", err)
		}
		for i, v := range out.ms {
			lines[i].add("ours", v)
		}
		lines[2].extra = fmt.Sprintf("getdents probe %.0f ms", out.scan)
		lines[3].extra = fmt.Sprintf("rename probe %.0f ms", out.rename)
		lines[7].extra = fmt.Sprintf("peak PSS %d MiB", out.pss>>10)
		if why == "" {
			theirs, err := storeDovecot(filepath.Join(dir, "dovecot"), n)
			if err != nil {
				return fmt.Errorf("dovecot: %w", err)
			}
			for i, v := range theirs {
				lines[i].add("dovecot", v)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// storeMaildir makes n messages of a hundred kinds: names are what is measured here, and
// messages are parsed from memory in either server.
func storeMaildir(dir string, n, uid int) error {
	if err := maildir.Create(durable.OS{}, dir); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(3, 4))
	kinds := make([]string, min(n, 1000))
	sizes := make([]string, len(kinds))
	for i := range n {
		k := i % len(kinds)
		base := fmt.Sprintf("%d.M%06dP7Q%d.host", 1_700_000_000+i, i%1_000_000, i)
		if kinds[k] != "" {
			if err := durable.Link(kinds[k], filepath.Join(dir, "cur", base+sizes[k]+":2,S")); err != nil {
				return err
			}
			continue
		}
		m := popMessage(r, i)
		sizes[k] = fmt.Sprintf(",S=%d,W=%d", len(m), len(m)+bytes.Count(m, []byte("\n")))
		kinds[k] = filepath.Join(dir, "cur", base+sizes[k]+":2,S")
		if err := os.WriteFile(kinds[k], m, 0o600); err != nil {
			return err
		}
	}
	if uid < 0 {
		return nil
	}
	return filepath.WalkDir(filepath.Dir(dir), func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, uid, uid)
		}
		return err
	})
}

// storeFigures is what a run of ours gives.
type storeFigures struct {
	ms           []float64
	scan, rename float64
	pss          int // KiB
}

// storeSelf runs ours in a process of its own.
func storeSelf(dir string) (f storeFigures, err error) {
	self, err := os.Executable()
	if err != nil {
		return f, err
	}
	cmd := exec.Command(self, "store-steps", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return f, err
	}
	for line := range strings.Lines(string(out)) {
		w := strings.Fields(line)
		v, err := strconv.ParseFloat(w[len(w)-1], 64)
		if err != nil {
			return f, fmt.Errorf("%q: %w", line, err)
		}
		switch w[0] {
		case "scan":
			f.scan = v
		case "rename":
			f.rename = v
		case "pss":
			f.pss = max(f.pss, int(v))
		default:
			f.ms = append(f.ms, v)
		}
	}
	return f, nil
}

// stepper takes the steps of ours and prints what they cost.
type stepper struct {
	dir string
	v   *mailbox.View
	err error
}

func (s *stepper) step(fn func() error) {
	if s.err != nil {
		return
	}
	begin := time.Now()
	s.err = fn()
	fmt.Printf("step %.3f\n", float64(time.Since(begin).Microseconds())/1000)
	fmt.Printf("pss %d\n", selfPSS())
}

func (s *stepper) open() error {
	m, err := mailbox.Open(s.dir, mailbox.Options{})
	if err != nil {
		return err
	}
	box, err := m.Mailbox(context.Background(), maildir.Inbox)
	if err == nil {
		s.v, err = box.Select(context.Background(), false)
	}
	return err
}

func (s *stepper) uids(n int) []uint32 {
	var out []uint32
	for _, m := range s.v.All(1, min(n, s.v.Len())) {
		out = append(out, m.UID)
	}
	return out
}

func (s *stepper) fetch(what mailbox.Columns) error {
	for _, err := range s.v.Cached(context.Background(), []mailbox.Range{{First: 1, Last: 1<<32 - 1}}, what) {
		if err != nil {
			return err
		}
	}
	return nil
}

// storeSteps is the process of ours.
func storeSteps(dir string) error {
	ctx := context.Background()
	s := &stepper{dir: dir}
	time.Sleep(1100 * time.Millisecond) // so that the directory is believed at once
	s.step(s.open)
	time.Sleep(1100 * time.Millisecond)
	if s.err == nil {
		_, s.err = s.v.Sync(ctx)
	}
	s.step(s.open)
	if s.err == nil {
		s.err = storeProbes(dir, s)
	}
	s.step(s.open)
	s.step(func() error {
		_, err := s.v.Store(ctx, s.uids(1<<30), mailbox.FlagChange{Op: mailbox.Add, Flags: maildir.Flagged})
		return err
	})
	st, err := mailbox.Open(dir, mailbox.Options{})
	if err == nil {
		err = st.Create(ctx, "A")
	}
	if s.err = errors.Join(s.err, err); s.err != nil {
		return s.err
	}
	a, err := st.Mailbox(ctx, "A")
	if err != nil {
		return err
	}
	const some = 10_000
	s.step(func() error { _, err := s.v.Copy(ctx, s.uids(some), a); return err })
	s.step(func() error { _, err := s.v.Move(ctx, s.uids(some), a); return err })
	if _, err := s.v.Sync(ctx); err != nil {
		return err
	}
	s.step(func() error { _, err := s.v.Expunge(ctx, s.uids(some)); return err })
	if _, err := s.v.Sync(ctx); err != nil {
		return err
	}
	s.step(func() error { return s.fetch(mailbox.Envelope) })
	s.step(func() error { return s.fetch(mailbox.Envelope) })
	s.step(func() error { return s.fetch(mailbox.BodyStructure) })
	text := strings.Repeat("A line of a message to append.\r\n", 100)
	s.step(func() error {
		for range 1000 {
			if _, err := a.Append(ctx, mailbox.Item{Message: strings.NewReader(text)}); err != nil {
				return err
			}
		}
		return nil
	})
	return s.err
}

// storeProbes measures what the system itself takes for a scan and for as many renames as there
// are messages, and delivers one message.
func storeProbes(dir string, s *stepper) error {
	cur := filepath.Join(dir, "cur")
	begin := time.Now()
	names, err := os.ReadDir(cur)
	if err != nil {
		return err
	}
	fmt.Printf("scan %.3f\n", float64(time.Since(begin).Microseconds())/1000)
	other := filepath.Join(filepath.Dir(dir), "probe")
	if err := os.Mkdir(other, 0o700); err != nil {
		return err
	}
	d, err := durable.OpenNames(durable.OS{}, other)
	if err != nil {
		return err
	}
	defer d.Close()
	src, err := durable.OpenNames(durable.OS{}, cur)
	if err != nil {
		return err
	}
	defer src.Close()
	for i, n := range names {
		if err := src.Link(n.Name(), d, n.Name()); err != nil {
			return fmt.Errorf("%d: %w", i, err)
		}
	}
	begin = time.Now()
	for _, n := range names {
		if err := d.RenameNew(n.Name(), d, n.Name()+"F"); err != nil {
			return err
		}
	}
	fmt.Printf("rename %.3f\n", float64(time.Since(begin).Microseconds())/1000)
	if err := os.RemoveAll(other); err != nil {
		return err
	}
	set := maildir.NewSet(maildir.Options{})
	m, err := set.Open(dir)
	if err == nil {
		_, err = m.Deliver(context.Background(), nil, strings.NewReader("Subject: x\n\nx\n"))
	}
	return err
}

func selfPSS() int {
	b, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if w := strings.Fields(line); len(w) > 1 && w[0] == "Pss:" {
			n, _ := strconv.Atoi(w[1]) // 0 where it cannot be read
			return n
		}
	}
	return 0
}

// storeDovecot takes the same steps by IMAP.
func storeDovecot(dir string, n int) (ms []float64, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := storeMaildir(filepath.Join(dir, "md"), n, mailtest.Nobody); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "dovecot.conf")
	text := fmt.Sprintf("base_dir = %[1]s/run\nstate_dir = %[1]s/run\nlog_path = /dev/stderr\nssl = no\nmail_location = maildir:%[1]s/md\nfirst_valid_uid = 1\nnamespace inbox {\n  inbox = yes\n  separator = /\n}\n", dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	for i, r := range storeRows {
		if i == 2 {
			m, err := maildir.NewSet(maildir.Options{}).Open(filepath.Join(dir, "md"))
			if err != nil {
				return nil, err
			}
			name, err := m.Deliver(context.Background(), nil, strings.NewReader("Subject: x\n\nx\n"))
			if err == nil {
				err = os.Chown(filepath.Join(dir, "md/new", name), mailtest.Nobody, mailtest.Nobody)
			}
			if err != nil {
				return nil, err
			}
		}
		v, err := dovecotStep(conf, r.imap, r.name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		ms = append(ms, v)
	}
	return ms, nil
}

// dovecotStep is one session: the time is that of the one command.
func dovecotStep(conf, command, what string) (float64, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "dovecot"), os.NewFile(uintptr(fds[1]), "bench")
	defer ours.Close()
	cmd := exec.Command("doveadm", "-c", conf, "exec", "imap")
	cmd.Env = append(os.Environ(), "HOME="+filepath.Dir(conf), "USER=nobody")
	cmd.Stdin, cmd.Stdout = theirs, theirs
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: mailtest.Nobody, Gid: mailtest.Nobody}}
	}
	err = cmd.Start()
	_ = theirs.Close() // the child has it
	if err != nil {
		return 0, err
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	c := &imapClient{r: bufio.NewReaderSize(conn, 256<<10), w: conn}
	err = c.prepare(command, what)
	begin := time.Now()
	if err == nil {
		if command == "" {
			err = c.append(1000)
		} else {
			err = c.do(strings.ReplaceAll(command, "%d", "10000"))
		}
	}
	took := float64(time.Since(begin).Microseconds()) / 1000
	return took, errors.Join(err, c.do("LOGOUT"), cmd.Wait())
}

// imapClient reads replies as fast as it can and keeps none.
type imapClient struct {
	r *bufio.Reader
	w io.Writer
	n int
}

// prepare does what a step needs before the time runs.
func (c *imapClient) prepare(command, what string) error {
	if _, err := c.r.ReadString('\n'); err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(command, "SELECT"):
		return nil
	case strings.HasPrefix(command, "COPY"):
		if err := c.do("CREATE A"); err != nil {
			return err
		}
	}
	if err := c.do("SELECT INBOX"); err != nil {
		return err
	}
	if strings.HasPrefix(what, "EXPUNGE") {
		return c.do(`STORE 1:10000 +FLAGS.SILENT \Deleted`)
	}
	return nil
}

func (c *imapClient) do(command string) error {
	c.n++
	tag := fmt.Sprintf("a%d ", c.n)
	if _, err := io.WriteString(c.w, tag+command+"\r\n"); err != nil {
		return err
	}
	return c.end(tag)
}

func (c *imapClient) end(tag string) error {
	for {
		l, err := c.r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
		if bytes.HasPrefix(l, []byte(tag)) {
			if !bytes.HasPrefix(l[len(tag):], []byte("OK")) {
				return fmt.Errorf("%q", l)
			}
			return nil
		}
	}
}

func (c *imapClient) append(n int) error {
	text := strings.Repeat("A line of a message to append.\r\n", 100)
	for range n {
		c.n++
		tag := fmt.Sprintf("a%d ", c.n)
		if _, err := fmt.Fprintf(c.w, "%sAPPEND A {%d}\r\n", tag, len(text)); err != nil {
			return err
		}
		if l, err := c.r.ReadString('\n'); err != nil || !strings.HasPrefix(l, "+") {
			return fmt.Errorf("APPEND: %q %w", l, err)
		}
		if _, err := io.WriteString(c.w, text+"\r\n"); err != nil {
			return err
		}
		if err := c.end(tag); err != nil {
			return err
		}
	}
	return nil
}
