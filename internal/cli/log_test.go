package cli

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pennypost/internal/config"
)

func TestLoggerFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	cfg := &config.Config{Log: "file:" + path, LogFormat: "json"}
	for range 2 { // the second open appends
		l, err := Logger(cfg, "tool")
		if err != nil {
			t.Fatal(err)
		}
		l.Info("accepted", "id", "x1", "from", "a\nb@c")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %q", len(lines), data)
	}
	var rec map[string]any
	if err := json.Unmarshal([]byte(lines[1]), &rec); err != nil || rec["from"] != "a\nb@c" || rec["tool"] != "tool" {
		t.Errorf("%v %v", rec, err)
	}
}

// TestLogFileRenamed: whoever renames the log away finds the next lines in a new one, also where a
// file was put there before us, and where none can be made no line is lost.
func TestLogFileRenamed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	l, err := Logger(&config.Config{Log: "file:" + path}, "tool")
	if err != nil {
		t.Fatal(err)
	}
	rename := func(to string) {
		t.Helper()
		if err := os.Rename(path, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(name, want string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		var got []string
		for line := range strings.Lines(string(b)) {
			_, msg, _ := strings.Cut(strings.TrimSpace(line), "msg=")
			word, _, _ := strings.Cut(msg, " ")
			got = append(got, word)
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s holds %q, want %s (%v)", name, got, want, err)
		}
	}
	l.Info("one")
	rename("log.1")
	l.Info("two")
	l.Info("three")
	rename("log.2")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Info("four")
	rename("log.3")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	l.Info("five")
	holds("log.1", "one")
	holds("log.2", "two three")
	holds("log.3", "four five")
}

func BenchmarkLogFile(b *testing.B) {
	l, err := Logger(&config.Config{Log: "file:" + filepath.Join(b.TempDir(), "log")}, "tool")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		l.Info("accepted", "id", "x")
	}
}

func TestLoggerFileMissing(t *testing.T) {
	if _, err := Logger(&config.Config{Log: "file:/nonexistent/dir/log"}, "tool"); err == nil {
		t.Error("no error for a log that cannot be opened")
	}
}

func TestSameSocket(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	dup, err := unix.Dup(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	t.Cleanup(func() { unix.Close(pair[0]); unix.Close(pair[1]); unix.Close(dup) })
	for _, c := range []struct {
		a, b int
		want bool
	}{{pair[0], dup, true}, {pair[0], pair[1], false}, {fd, fd, false}, {pair[0], fd, false}, {-1, pair[0], false}} {
		if got := sameSocket(c.a, c.b); got != c.want {
			t.Errorf("sameSocket(%d, %d) = %v", c.a, c.b, got)
		}
	}
}

func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Skipf("no UNIX sockets below %s: %v", path, err)
	}
	l := slog.New(&syslogHandler{state: &syslogConn{tag: "tool[7]", paths: []string{path}}}).With("id", "x1").WithGroup("g")
	l.Warn("two\nlines", "reply", "no")
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	got := string(buf[:n])
	want := "<20>" + time.Now().Format("Jan")
	if !strings.HasPrefix(got, want) || !strings.HasSuffix(got, `tool[7]: msg="two\nlines" id=x1 g.reply=no`) {
		t.Errorf("got %q", got)
	}
}

// Without a syslog daemon the record is dropped; above all it is not written to descriptor 2.
func TestSyslogUnreachable(t *testing.T) {
	h := &syslogHandler{state: &syslogConn{tag: "tool[7]", paths: []string{"/nonexistent/log"}}, json: true}
	slog.New(h).Error("lost")
	if h.state.fd != 0 {
		t.Error("a socket that does not exist was opened")
	}
}
