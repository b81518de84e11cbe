package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// syncs counts with strace what a message costs on its way from SMTP into the Maildir.
func (b *bench) syncs() error {
	if ok, err := b.load(); !ok {
		return err
	}
	if !have("strace") {
		b.skip("strace is not installed")
		return nil
	}
	for _, c := range []struct {
		sessions int
		bound    float64
	}{{1, 4}, {10, 2.5}} {
		l := b.out.line(fmt.Sprintf("syncs a message, %d sessions", c.sessions), "", &budget{less: true, abs: c.bound})
		for _, p := range b.peers {
			n := b.n(200)
			s, err := b.countSyncs(p, n, c.sessions)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			l.add(p.name, float64(s.files+s.dirs+s.flagged)/float64(n))
			per := func(k int) float64 { return float64(k) / float64(n) }
			l.extra += fmt.Sprintf("[%s: files %.2f, directories %.2f, O_SYNC %.2f, renames and links %.2f, processes %.2f] ",
				p.name, per(s.files), per(s.dirs), per(s.flagged), per(s.names), per(s.execs))
		}
	}
	return nil
}

// tally is what strace saw.
type tally struct{ files, dirs, flagged, names, execs int }

func (b *bench) countSyncs(p *peer, n, sessions int) (tally, error) {
	// The first messages make connections and caches; they are not counted.
	if _, err := p.accepted(20, sessions, 4096, true); err != nil {
		return tally{}, err
	}
	if err := p.empty(); err != nil {
		return tally{}, err
	}
	log := filepath.Join(b.dir, "strace."+p.name)
	args := []string{"-f", "-q", "-y", "-o", log, "-e", "signal=none",
		"-e", "trace=fsync,fdatasync,sync_file_range,sync,syncfs,msync,openat,link,linkat,rename,renameat,renameat2,execve"}
	for _, pid := range p.pids() {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	cmd := exec.Command("strace", args...)
	if err := cmd.Start(); err != nil {
		return tally{}, err
	}
	// strace attaches one thread after the other and says nothing when it is done.
	time.Sleep(1500 * time.Millisecond)
	_, err := p.send(n, sessions, 4096, true, "alice@example.test")
	if err == nil {
		_, err = p.await(n, 20*time.Millisecond)
	}
	time.Sleep(500 * time.Millisecond)
	stop := cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait() // its status is that of the signal
	if err = errors.Join(err, stop); err != nil {
		return tally{}, err
	}
	return readTrace(log)
}

var traced = regexp.MustCompile(`^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)(.*)`)

// readTrace counts calls that succeeded. A call that strace shows in two halves counts once,
// by its first half, which has the arguments.
func readTrace(log string) (tally, error) {
	f, err := os.Open(log)
	if err != nil {
		return tally{}, err
	}
	defer f.Close()
	var t tally
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		m := traced.FindStringSubmatch(s.Text())
		if m == nil || strings.Contains(s.Text(), " resumed>") || strings.Contains(m[2], " = -1 ") {
			continue
		}
		switch call, rest := m[1], m[2]; call {
		case "fsync", "fdatasync":
			if isDir(rest) {
				t.dirs++
			} else {
				t.files++
			}
		case "sync", "syncfs", "msync", "sync_file_range":
			t.files++
		case "openat":
			if strings.Contains(rest, "SYNC") {
				t.flagged++
			}
		case "execve":
			t.execs++
		default:
			t.names++
		}
	}
	return t, s.Err()
}

// isDir looks at the path that strace -y puts behind the descriptor.
func isDir(args string) bool {
	_, path, _ := strings.Cut(args, "<")
	path, _, _ = strings.Cut(path, ">")
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}
