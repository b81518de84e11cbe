//go:build long

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const gib = 1 << 30

// pieces repeats block until n octets have been read, and puts last behind them.
type pieces struct {
	block []byte
	n     int64
	last  []byte
	off   int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.n <= 0 {
		n := copy(b, p.last)
		p.last = p.last[n:]
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	n := copy(b, p.block[p.off:])
	p.off = (p.off + n) % len(p.block)
	p.n -= int64(n)
	return n, nil
}

// One GiB streams in under 32 MiB of memory, whatever happens to it on the way.
func TestOneGiB(t *testing.T) {
	text := bytes.Repeat([]byte("seventy octets of plain text, as a log or a mail has them, and more.\n"), 1000)
	crlf := bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
	binary := bytes.Repeat([]byte("\x00\x01\x02\x03\xff\xfe\r\nbinary"), 5000)
	build := filepath.Join(t.TempDir(), "msend")
	cmd := exec.Command("go", "build", "-tags", "urfave_cli_no_docs", "-o", build, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, c := range []struct {
		name  string
		block []byte
		last  string
		args  []string
		size  int64 // least octets stored
	}{
		{"plain text", text, "", []string{"bob@b.test"}, gib},
		{"CRLF", crlf, "", []string{"bob@b.test"}, gib - gib/32},
		{"UTF-8 at the very end", text, "ü\n", []string{"bob@b.test"}, gib},
		{"CR at the very end", text, "1\r2\n", []string{"bob@b.test"}, gib},
		{"binary", binary, "", []string{"bob@b.test"}, gib / 3 * 4},
		{"no line end", bytes.Repeat([]byte("x"), 60000), "", []string{"bob@b.test"}, gib},
		{"attachment", binary, "", []string{"-s", "backup", "-a", "-", "bob@b.test"}, gib / 3 * 4},
		{"through sendmail's dots", text, "", nil, gib},
	} {
		w := newWorld(t)
		w.config("[limits]\nmessage_size = 0\n")
		tool := filepath.Join(w.dir, "msend")
		if c.args == nil {
			tool, c.args = filepath.Join(w.dir, "sendmail"), []string{"bob@b.test"}
		}
		if err := os.Symlink(build, tool); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(tool, c.args...)
		head := []byte("Subject: large\n\n")
		if c.name == "attachment" {
			head = nil
		}
		in := &pieces{block: c.block, n: gib, last: []byte(c.last)}
		var errs bytes.Buffer
		cmd.Env, cmd.Stdin, cmd.Stderr = w.env, io.MultiReader(bytes.NewReader(head), in), &errs
		start := time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v: %s", c.name, err, errs.String())
		}
		took := time.Since(start)
		rss := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
		list := files(t, filepath.Join(w.spool, "incoming"))
		if len(list) != 1 {
			t.Fatalf("%s: incoming holds %v", c.name, list)
		}
		info, err := os.Stat(list[0])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%-24s %4d MiB stored, %.1f s, %5.1f MiB of memory\n", c.name, info.Size()>>20, took.Seconds(), float64(rss)/1024)
		if rss > 32<<10 {
			t.Errorf("%s: %d KiB of memory", c.name, rss)
		}
		if info.Size() < c.size {
			t.Errorf("%s: %d octets stored", c.name, info.Size())
		}
		if err := os.Remove(list[0]); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk that fills up in the middle, and in the middle of encoding the body again, leaves
// nothing behind.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	w := newWorld(t)
	if err := syscall.Mount("tmpfs", w.spool, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("no tmpfs here: ", err)
	}
	defer syscall.Unmount(w.spool, 0)
	for _, d := range []string{"incoming", "queue", "log", "history", "corrupt"} {
		if err := os.Mkdir(filepath.Join(w.spool, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.config("[limits]\nfree_space = 0\nfree_inodes = 0\n")
	line := []byte("seventy octets of plain text, as a log or a mail has them, and more.\n")
	for _, c := range []struct {
		name string
		in   io.Reader
	}{
		{"plain", &pieces{block: line, n: 3 << 20}},
		{"encoded again", &pieces{block: line, n: 1500 << 10, last: []byte("1\r2\n")}},
	} {
		if got := w.run(c.in, "msend", "bob@b.test"); got != 75 {
			t.Errorf("%s: exit %d, stderr %q", c.name, got, w.stderr)
		}
		if l := files(t, filepath.Join(w.spool, "incoming")); len(l) != 0 {
			t.Errorf("%s: left over: %v", c.name, l)
		}
		if bytes.Count([]byte(w.stderr), []byte("\n")) != 1 || !bytes.Contains([]byte(w.stderr), []byte("no space left")) {
			t.Errorf("%s: stderr %q", c.name, w.stderr)
		}
	}
}
