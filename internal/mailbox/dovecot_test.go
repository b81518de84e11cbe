package mailbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pennypost/internal/maildir"
	"pennypost/internal/mailtest"
)

// Processes of ours, a running Dovecot and mutt work in one folder at once. Everybody only ever
// adds flags, so that a flag which somebody has seen and which is not there in the end was lost.
//
// mutt loses some. It reads the flags when it opens a folder, and when it finds a file renamed
// since, it takes the file's new name but not all of the flags in it: none if it changes the
// message itself, never D or the letters of keywords. Then it renames the file from that name to
// one with its own flags. This is strace -f -e rename,renameat2 for one message, B its base name,
// with mutt 2.2.12 and times in seconds:
//
//	0.000 mutt rename("cur/B:2,S", "cur/B:2,FS") = 0
//	0.353 ours renameat2(17, "B:2,FS", 17, "B:2,DFS", RENAME_NOREPLACE) = 0
//	0.365 ours renameat2(17, "B:2,DFS", 17, "B:2,DFSa", RENAME_NOREPLACE) = 0
//	0.773 ours renameat2(13, "B:2,DFSa", 13, "B:2,DFRSa", RENAME_NOREPLACE) = 0
//	1.006 mutt rename("cur/B:2,DFRSa", "cur/B:2,FS") = 0
//
// Of 8439 renames in such storms 195 took a letter away, and all of these were mutt's. So mutt
// changes only half of the messages, of which what stood in a file name while no mutt ran must be
// there in the end. Of all others everything must.
//
// mutt also moves what nobody has seen from cur/ back to new/. Dovecot, when it has looked at new/
// and not yet at cur/, takes that for an expunge, and later logs "Expunged message reappeared,
// giving a new UID". So only messages that mutt leaves alone must keep their UIDs.

// shareRole tells this test binary, run again as the user whom Dovecot serves, what to do.
const shareRole = "PENNYPOST_SHARE_ROLE"

func TestShareWorker(t *testing.T) {
	role, dir, _ := strings.Cut(os.Getenv(shareRole), " ")
	var err error
	switch role {
	case "":
		t.Skip("not a process that shares a folder with Dovecot")
	case "dump":
		err = shareDump(t.Context(), dir)
	default:
		err = sharer(t.Context(), role, dir)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// report writes a line that a log of the test understands: what a party knows of a message.
func report(w io.Writer, word, uid, id string, flags []string) error {
	slices.Sort(flags)
	_, err := fmt.Fprintln(w, word, uid, id, strings.Join(flags, " "))
	return err
}

// flagNames are a message's flags and keywords as IMAP has them.
func flagNames(v *View, m Message) (names []string) {
	for i, n := range []string{`\Draft`, `\Flagged`, "", `\Answered`, `\Seen`, `\Deleted`} {
		if m.Flags&(1<<i) != 0 && n != "" {
			names = append(names, n)
		}
	}
	return append(names, keywordNames(v.Keywords(), m.Keywords)...)
}

func shareID(v *View, uid uint32) (string, error) {
	text, err := readAll(v, uid)
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(text, "\n")
	return strings.TrimSpace(strings.TrimPrefix(first, "Subject: ")), nil
}

// shareDump writes down what our store says of the folder.
func shareDump(ctx context.Context, dir string) error {
	s, err := Open(dir, Options{})
	if err != nil {
		return err
	}
	m, err := s.Mailbox(ctx, "INBOX")
	if err != nil {
		return err
	}
	v, err := m.Select(ctx, true)
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(filepath.Dir(dir), "log.dump"))
	if err != nil {
		return err
	}
	// A change that came together with one of ours may be told a second later: mmailbox(5).
	settled := func() bool {
		_, err = v.Sync(ctx)
		return err != nil || v.st.verify == 0
	}
	if !mailtest.Wait(10*time.Second, settled) || err != nil {
		return fmt.Errorf("the folder does not come to rest: %w", err)
	}
	for _, m := range v.All(1, v.Len()) {
		id, err := shareID(v, m.UID)
		if err != nil {
			return err
		}
		if err := report(f, "=", fmt.Sprint(v.UIDValidity(), ".", m.UID), id, flagNames(v, m)); err != nil {
			return err
		}
	}
	return f.Close()
}

// sharer works until its standard input ends.
func sharer(ctx context.Context, name, dir string) error {
	log, err := os.OpenFile(filepath.Join(filepath.Dir(dir), "log."+name), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s, err := Open(dir, Options{Host: name})
	if err != nil {
		return err
	}
	m, err := s.Mailbox(ctx, "INBOX")
	if err != nil {
		return err
	}
	v, err := m.Select(ctx, false)
	if err != nil {
		return err
	}
	var over atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // however it ends
		over.Store(true)
	}()
	w := &shareWorker{name: name, dir: dir, log: log, v: v, told: map[string]bool{}}
	for !over.Load() {
		if err := w.step(ctx); err != nil && !errors.Is(err, ErrExpunged) {
			return err
		}
		if err := w.look(ctx); err != nil {
			return err
		}
	}
	return log.Close()
}

type shareWorker struct {
	name, dir string
	log       *os.File
	v         *View
	count     int
	told      map[string]bool
}

func (w *shareWorker) look(ctx context.Context) error {
	if _, err := w.v.Sync(ctx); err != nil {
		return err
	}
	for _, m := range w.v.All(1, w.v.Len()) {
		flags := flagNames(w.v, m)
		key := fmt.Sprint(m.UID, flags)
		if w.told[key] {
			continue
		}
		id, err := shareID(w.v, m.UID)
		if errors.Is(err, ErrExpunged) {
			continue
		}
		if err != nil {
			return err
		}
		w.told[key] = true
		if err := report(w.log, "U", fmt.Sprint(w.v.UIDValidity(), ".", m.UID), id, flags); err != nil {
			return err
		}
	}
	return nil
}

func (w *shareWorker) step(ctx context.Context) error {
	v := w.v
	if v.Len() < 10 || v.Len() < 60 && rand.IntN(4) == 0 {
		w.count++
		id := fmt.Sprintf("%s-%d-%d", w.name, os.Getpid(), w.count)
		text := strings.NewReader("Subject: " + id + "\n\nbody\n")
		if w.count%2 == 0 {
			d, err := maildir.NewSet(maildir.Options{Host: w.name}).Open(w.dir)
			if err != nil {
				return err
			}
			if _, err := d.Deliver(ctx, nil, text); err != nil {
				return err
			}
			return report(w.log, "A", "-", id, nil)
		}
		c, err := v.m.Append(ctx, Item{Message: text})
		if err != nil {
			return err
		}
		return report(w.log, "A", fmt.Sprint(c.UIDValidity, ".", c.To[0]), id, nil)
	}
	uid := v.At(1 + rand.IntN(v.Len())).UID
	if v.Len() > 30 && rand.IntN(6) == 0 {
		id, err := shareID(v, uid)
		if err == nil {
			err = report(w.log, "E", "-", id, nil)
		}
		if err == nil {
			_, err = v.Expunge(ctx, []uint32{uid})
		}
		return err
	}
	ch := FlagChange{Op: Add, Flags: maildir.Flags(1 << []int{0, 1, 3, 4}[rand.IntN(4)])}
	if rand.IntN(2) == 0 {
		ch.Keywords = []string{[]string{"both", "ours"}[rand.IntN(2)]}
	}
	_, err := v.Store(ctx, []uint32{uid}, ch)
	return err
}

// share is a folder in use by many.
type share struct {
	*testing.T
	dir, exe string
	addr     string
	over     atomic.Bool
}

func (s *share) md() string { return filepath.Join(s.dir, "md") }

// nobody makes a command that runs as the user whom Dovecot serves.
func (s *share) nobody(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "USER=nobody", "TERM=xterm", "TMPDIR="+s.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: mailtest.Nobody, Gid: mailtest.Nobody}}
	return cmd
}

func (s *share) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func newShare(t *testing.T) *share {
	if why := mailtest.DovecotMissing(); why != "" {
		t.Skip(why)
	}
	s := &share{T: t}
	var err error
	s.dir, err = os.MkdirTemp("", "share") // t.TempDir is for its owner alone
	s.ok(err)
	t.Cleanup(func() { _ = os.RemoveAll(s.dir) }) // what stays lies below the system's /tmp
	s.exe = filepath.Join(s.dir, "worker")
	self, err := os.ReadFile("/proc/self/exe")
	s.ok(err)
	s.ok(os.WriteFile(s.exe, self, 0o755))
	s.ok(os.Chmod(s.dir, 0o755))
	s.ok(os.Chown(s.dir, mailtest.Nobody, mailtest.Nobody))
	d, err := mailtest.StartDovecot(mailtest.DovecotOptions{Dir: s.dir, Maildir: s.md()})
	s.ok(err)
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	s.addr = d.IMAP
	return s
}

// worker starts a process of ours, which stop ends.
func (s *share) worker(role string) (stop func()) {
	cmd := s.nobody(s.exe, "-test.run=^TestShareWorker$", "-test.count=1")
	cmd.Env = append(cmd.Env, shareRole+"="+role+" "+s.md())
	in, err := cmd.StdinPipe()
	s.ok(err)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	s.ok(cmd.Start())
	return func() {
		_ = in.Close() // its end is what is wanted
		if err := cmd.Wait(); err != nil {
			s.Errorf("%s: %v\n%s", role, err, &out)
		}
	}
}

// imap is a session at Dovecot.
type imap struct {
	c   net.Conn
	r   *bufio.Reader
	log *os.File
	n   int
}

func (s *share) dial(log *os.File) (*imap, error) {
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		return nil, err
	}
	i := &imap{c: c, r: bufio.NewReader(c), log: log}
	for _, cmd := range []string{"LOGIN nobody secret", "SELECT INBOX"} {
		if _, err := i.do(cmd, ""); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return i, nil
}

var errNo = errors.New("refused by Dovecot")

// do sends a command, with a literal behind it if there is one, and returns the untagged lines.
func (i *imap) do(cmd, literal string) (lines []string, err error) {
	if err := i.c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	i.n++
	tag := "t" + strconv.Itoa(i.n)
	if literal != "" {
		cmd += fmt.Sprintf(" {%d+}\r\n%s", len(literal), literal)
	}
	if _, err := fmt.Fprintf(i.c, "%s %s\r\n", tag, cmd); err != nil {
		return nil, err
	}
	for {
		line, err := i.r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		rest, tagged := strings.CutPrefix(line, tag+" ")
		switch {
		case !tagged:
			lines = append(lines, strings.TrimSpace(line))
		case strings.HasPrefix(rest, "OK"):
			return append(lines, strings.TrimSpace(rest)), nil
		default:
			return nil, fmt.Errorf("%w: %s: %q", errNo, cmd, rest)
		}
	}
}

var (
	fetched  = regexp.MustCompile(`^\* \d+ FETCH \(UID (\d+) FLAGS \(([^)]*)\) ENVELOPE \((?:NIL|"[^"]*") "([^"]*)"`)
	validity = regexp.MustCompile(`UIDVALIDITY (\d+)`)
	appended = regexp.MustCompile(`APPENDUID (\d+) (\d+)`)
)

type shared struct {
	uid, id string
	flags   []string
}

// list asks for all messages. The ENVELOPE comes from Dovecot's cache, which goes by UID.
func (i *imap) list() (out []shared, err error) {
	v, err := i.do("STATUS INBOX (UIDVALIDITY)", "")
	if err != nil {
		return nil, err
	}
	m := validity.FindStringSubmatch(strings.Join(v, " "))
	lines, err := i.do("UID FETCH 1:* (FLAGS ENVELOPE)", "")
	for _, l := range lines {
		if f := fetched.FindStringSubmatch(l); f != nil {
			flags := slices.DeleteFunc(strings.Fields(f[2]), func(f string) bool { return f == `\Recent` })
			out = append(out, shared{m[1] + "." + f[1], f[3], flags})
		}
	}
	return out, err
}

// session is a client of Dovecot until the storm is over.
func (s *share) session(name string) error {
	log, err := os.Create(filepath.Join(s.dir, "log."+name))
	if err != nil {
		return err
	}
	defer log.Close()
	i, err := s.dial(log)
	if err != nil {
		return err
	}
	defer i.c.Close()
	for n := 0; !s.over.Load(); n++ {
		l, err := i.list()
		if err != nil {
			return err
		}
		for _, m := range l {
			if err := report(log, "U", m.uid, m.id, m.flags); err != nil {
				return err
			}
		}
		err = i.step(fmt.Sprintf("%s-%d", name, n), l)
		if errors.Is(err, errNo) && strings.Contains(err.Error(), "EXPUNGEISSUED") {
			err = nil
		}
		if err != nil {
			return err
		}
		if n%50 == 49 { // a new session reads the files anew
			i.c.Close()
			if i, err = s.dial(log); err != nil {
				return err
			}
		}
	}
	return nil
}

func (i *imap) step(id string, l []shared) error {
	if len(l) < 10 || len(l) < 60 && rand.IntN(4) == 0 {
		got, err := i.do("APPEND INBOX", "Subject: "+id+"\r\n\r\nbody\r\n")
		if err != nil {
			return err
		}
		uid := "-"
		if m := appended.FindStringSubmatch(strings.Join(got, " ")); m != nil {
			uid = m[1] + "." + m[2]
		}
		return report(i.log, "A", uid, id, nil)
	}
	m := l[rand.IntN(len(l))]
	_, uid, _ := strings.Cut(m.uid, ".")
	if len(l) > 30 && rand.IntN(6) == 0 {
		err := report(i.log, "E", "-", m.id, nil)
		if err == nil {
			_, err = i.do("UID STORE "+uid+` +FLAGS (\Deleted)`, "")
		}
		if err == nil {
			_, err = i.do("UID EXPUNGE "+uid, "")
		}
		return err
	}
	flag := []string{`\Answered`, `\Flagged`, `\Seen`, `\Draft`, "both", "theirs"}[rand.IntN(6)]
	_, err := i.do("UID STORE "+uid+" +FLAGS ("+flag+")", "")
	return err
}

// agent delivers through Dovecot's own means.
func (s *share) agent() error {
	log, err := os.Create(filepath.Join(s.dir, "log.agent"))
	if err != nil {
		return err
	}
	defer log.Close()
	for n := 0; !s.over.Load(); n++ {
		id := "agent-" + strconv.Itoa(n)
		cmd := s.nobody("doveadm", "-c", filepath.Join(s.dir, "dovecot.conf"), "save")
		cmd.Stdin = strings.NewReader("Subject: " + id + "\n\nbody\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("doveadm save: %w\n%s", err, out)
		}
		if err := report(log, "A", "-", id, nil); err != nil {
			return err
		}
		if n%4 > 0 {
			continue
		}
		if out, err := s.nobody("doveadm", "-c", filepath.Join(s.dir, "dovecot.conf"), "flags", "add", `\Flagged`, "mailbox", "INBOX", "subject", id).CombinedOutput(); err != nil {
			return fmt.Errorf("doveadm flags: %w\n%s", err, out)
		}
	}
	return nil
}

// muttsOwn tells the messages that mutt changes, by the last letter of the subject.
func muttsOwn(id string) bool { return id[len(id)-1] < '5' }

// muttFlags flags them.
const muttFlags = `push "<tag-pattern>~s [0-4]$<enter><tag-prefix><set-flag>!<sync-mailbox><quit>"`

// letters notes which flags stand in the names of files, by base name. It is for when no mutt
// runs: each that starts later reads them before it renames anything.
func (s *share) letters(kept map[string]string) error {
	for _, sub := range []string{"new", "cur"} { // mutt moves to new/ what nobody has seen
		files, err := os.ReadDir(filepath.Join(s.md(), sub))
		if err != nil {
			return err
		}
		for _, f := range files {
			if base, flags, ok := strings.Cut(f.Name(), ":2,"); ok {
				kept[base] += strings.ReplaceAll(flags, "T", "") // which mutt takes off
			}
		}
	}
	return nil
}

// mutt flags messages, again and again, and returns how often.
func (s *share) mutt(kept map[string]string) (runs int, err error) {
	rc := filepath.Join(s.dir, "muttrc")
	text := "set folder=" + s.dir + " delete=no quit=yes move=no mark_old=no wait_key=no sort=mailbox-order\n" +
		muttFlags + "\n"
	if err := os.WriteFile(rc, []byte(text), 0o644); err != nil {
		return 0, err
	}
	for ; !s.over.Load(); runs++ {
		if err := s.letters(kept); err != nil {
			return runs, err
		}
		cmd := s.nobody("timeout", "20", "script", "-qec", "mutt -n -F "+rc+" -f "+s.md(), "/dev/null")
		keys, err := cmd.StdinPipe() // an end of input would be taken for a key
		if err != nil {
			return runs, err
		}
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			return runs, err
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		// Where another program was faster with a rename, mutt forgets what was pushed and waits.
		leave := time.NewTicker(300 * time.Millisecond)
		for ended := false; !ended; {
			select {
			case err = <-done:
				ended = true
			case <-leave.C:
				_, _ = io.WriteString(keys, "x") // mutt may be gone
			}
		}
		leave.Stop()
		_ = keys.Close() // mutt is gone
		if err != nil {
			return runs, fmt.Errorf("mutt: %w\n%q", err, out.String())
		}
	}
	return runs, s.letters(kept)
}

func TestShareWithDovecot(t *testing.T) {
	t.Parallel()
	s := newShare(t)
	var wg sync.WaitGroup
	try := func(what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	i, err := s.dial(nil) // makes the Maildir
	s.ok(err)
	s.ok(i.c.Close())
	stops := []func(){s.worker("ours1"), s.worker("ours2")}
	try("Dovecot 1", func() error { return s.session("imap1") })
	try("Dovecot 2", func() error { return s.session("imap2") })
	try("Dovecot's agent", s.agent)
	runs, kept := 0, map[string]string{}
	_, noMutt := exec.LookPath("mutt")
	_, noScript := exec.LookPath("script")
	if errors.Join(noMutt, noScript) == nil {
		try("mutt", func() (err error) { runs, err = s.mutt(kept); return err })
	} else {
		t.Log("without mutt, which needs script(1) too: ", errors.Join(noMutt, noScript))
	}
	time.Sleep(shareTime) // how long the storm lasts, and longer where the machine has much to do
	mailtest.Wait(time.Minute, s.stormy)
	s.over.Store(true)
	for _, stop := range stops {
		stop()
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	s.compare(runs > 0)
	s.compareNames(kept)
	t.Logf("mutt ran %d times", runs)
}

// stormy tells whether enough was done.
func (s *share) stormy() bool {
	s.Helper()
	logs, err := filepath.Glob(filepath.Join(s.dir, "log.*"))
	s.ok(err)
	done := map[string]int{}
	for _, log := range logs {
		for _, l := range s.lines(filepath.Base(log)) {
			done[l[0]]++
		}
	}
	return done["A"] > 20 && done["E"] > 2
}

// compareNames holds flags that no mutt can have taken away against the names of files.
func (s *share) compareNames(kept map[string]string) {
	s.Helper()
	now := map[string]string{}
	s.ok(s.letters(now))
	checked := 0
	for base, flags := range kept {
		has, ok := now[base]
		if !ok {
			continue // expunged, or compare says that it is lost
		}
		checked += len(flags)
		if lost := strings.Trim(flags, has); lost != "" {
			s.Errorf("%s has lost %s, has %s", base, lost, has)
		}
	}
	s.Logf("%d letters in names looked at", checked)
}

// final returns what is there, by UID, which both servers must say.
func (s *share) final() (ours map[string]string) {
	i, err := s.dial(nil)
	s.ok(err)
	theirs := s.dovecots(i)
	s.worker("dump")()
	ours = map[string]string{}
	for _, l := range s.lines("log.dump") {
		ours[l[1]] = strings.Join(l[2:], " ")
	}
	again := s.dovecots(i)
	if !maps.Equal(ours, theirs) || !maps.Equal(ours, again) {
		for uid := range ours {
			if ours[uid] != theirs[uid] || ours[uid] != again[uid] {
				s.Errorf("UID %s: ours %q, Dovecot's %q, later %q", uid, ours[uid], theirs[uid], again[uid])
			}
		}
		s.Errorf("ours %d messages, Dovecot's %d, later %d", len(ours), len(theirs), len(again))
	}
	return ours
}

// compare holds what everybody has seen and done against what is there.
func (s *share) compare(mutt bool) {
	ours := s.final()
	at, flags := map[string]string{}, map[string]map[string]bool{} // by identity
	added, expunged, told := map[string]bool{}, map[string]bool{}, map[string]string{}
	twice := map[string]string{}
	seen := func(uid, id string, fl []string, who string) {
		if was, ok := told[uid]; ok && was != id {
			s.Errorf("UID %s was %s and is %s for %s", uid, was, id, who)
		}
		if was, ok := at[id]; ok && was != uid {
			twice[id] = fmt.Sprintf("%s has UID %s and %s for %s", id, was, uid, who)
		}
		told[uid], at[id] = id, uid
		if flags[id] == nil {
			flags[id] = map[string]bool{}
		}
		for _, f := range fl {
			flags[id][f] = f != `\Deleted`
		}
	}
	logs, err := filepath.Glob(filepath.Join(s.dir, "log.*"))
	s.ok(err)
	for _, log := range logs {
		for _, l := range s.lines(filepath.Base(log)) {
			switch l[0] {
			case "A":
				added[l[2]] = true
			case "E":
				expunged[l[2]] = true
			}
			if l[1] != "-" {
				seen(l[1], l[2], l[3:], filepath.Base(log))
			}
		}
	}
	mutts := func(id string) bool { return mutt && (muttsOwn(id) || expunged[id]) } // it takes \Deleted off all
	for id, what := range twice {
		if !mutts(id) {
			s.Error(what)
		}
	}
	left, checked, muttLost := map[string]bool{}, 0, 0
	for uid, text := range ours {
		f := strings.Fields(text)
		left[f[0]] = true
		for flag, want := range flags[f[0]] {
			checked++
			switch {
			case !want || slices.Contains(f[1:], flag):
			case mutts(f[0]):
				muttLost++
			default:
				s.Errorf("UID %s: %s has lost %s, has %v", uid, f[0], flag, f[1:])
			}
		}
	}
	for id := range added {
		if !left[id] && !expunged[id] {
			s.Errorf("%s is lost; it had UID %s", id, at[id])
		}
	}
	if len(added) < 20 || len(told) < 20 || len(expunged) == 0 {
		s.Errorf("%d messages, %d UIDs, %d expunged: that was no storm", len(added), len(told), len(expunged))
	}
	s.Logf("%d messages, %d expunged, %d UIDs told, %d left with %d flags; mutt has lost %d, %d have a second UID", len(added), len(expunged), len(told), len(ours), checked, muttLost, len(twice))
}

func (s *share) dovecots(i *imap) map[string]string {
	s.Helper()
	_, err := i.do("NOOP", "")
	s.ok(err)
	l, err := i.list()
	s.ok(err)
	out := map[string]string{}
	for _, m := range l {
		slices.Sort(m.flags)
		out[m.uid] = strings.TrimSpace(m.id + " " + strings.Join(m.flags, " "))
	}
	return out
}

func (s *share) lines(name string) (out [][]string) {
	s.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	s.ok(err)
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) >= 3 {
			out = append(out, f)
		}
	}
	return out
}
