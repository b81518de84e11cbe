package maildir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pennypost/internal/durable"
)

func lockFile(dir string) string { return filepath.Join(dir, UIDListName+".lock") }

func TestUIDLock(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	l, err := LockUIDList(ctx, durable.OS{}, dir, LockOptions{Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(lockFile(dir)); err != nil || string(b) != fmt.Sprintf("%d:h", os.Getpid()) {
		t.Errorf("%q %v", b, err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := LockUIDList(short, durable.OS{}, dir, LockOptions{Host: "h"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked twice: %v", err)
	}
	if err := errors.Join(l.Held(), l.Touch(), l.Unlock()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(lockFile(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Unlock: %v", err)
	}
}

// deadPID is the number of a process that has ended.
func deadPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Skip(err)
	}
	return cmd.Process.Pid
}

func TestUIDLockOfTheDead(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name, content string
		age           time.Duration
		step          time.Duration // the clock's, each time it is asked
		ok            bool
	}{
		{"dead on this host", fmt.Sprintf("%d:h", deadPID(t)), 0, 0, true},
		{"dead, with a line end", fmt.Sprintf("%d:h\n", deadPID(t)), 0, 0, true},
		{"alive on this host", fmt.Sprintf("%d:h", os.Getpid()), 0, 0, false},
		{"another host's", fmt.Sprintf("%d:other", deadPID(t)), 0, 0, false},
		{"another host's, stamped long ago, seen just now", "1:other", time.Hour, 0, false},
		{"another host's, stamped long ago, seen for a while", "1:other", time.Hour, time.Second, true},
		{"another host's, seen for long", "1:other", 0, 121 * time.Second, true},
		{"not written yet", "", 0, 0, false},
		{"never written", "", 0, time.Second, true},
		{"no number", "x:h", 0, 0, false},
		{"all processes", "-1:h", 0, 0, false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(lockFile(dir), []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(lockFile(dir), now, now.Add(-c.age)); err != nil {
			t.Fatal(err)
		}
		clock := now
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Millisecond)
		l, err := LockUIDList(ctx, durable.OS{}, dir, LockOptions{Host: "h", Now: func() time.Time {
			clock = clock.Add(c.step)
			return clock
		}})
		cancel()
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil {
			if err := l.Unlock(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if names, err := os.ReadDir(dir); err != nil || c.ok && len(names) != 0 {
			t.Errorf("%s: left behind: %v %v", c.name, names, err)
		}
	}
}

// Who was taken for dead learns it before he replaces the list.
func TestUIDLockLost(t *testing.T) {
	dir := t.TempDir()
	l, err := LockUIDList(context.Background(), durable.OS{}, dir, LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(lockFile(dir)); err != nil {
		t.Fatal(err)
	}
	if err := l.Held(); !errors.Is(err, ErrLockLost) {
		t.Errorf("removed: %v", err)
	}
	other, err := LockUIDList(context.Background(), durable.OS{}, dir, LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(); !errors.Is(err, ErrLockLost) {
		t.Errorf("replaced: %v", err)
	}
	if err := other.Held(); err != nil {
		t.Errorf("the loser took the other's lock: %v", err)
	}
	if err := other.Unlock(); err != nil {
		t.Error(err)
	}
}

// A lock that another one has put in the place of the dead one is put back.
func TestUIDLockOverride(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(lockFile(dir), []byte("1:other"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(lockFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lockFile(dir)+"2", []byte("2:other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.Rename(lockFile(dir)+"2", lockFile(dir)); err != nil {
		t.Fatal(err)
	}
	l := &UIDLock{fsys: durable.OS{}, path: lockFile(dir), now: time.Now}
	if err := l.override(lockSight{info: info}); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(lockFile(dir)); err != nil || string(b) != "2:other" {
		t.Errorf("%q %v", b, err)
	}
}

func TestUIDLockExcludes(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	var inside atomic.Int32
	for range 4 {
		wg.Go(func() {
			for range 25 {
				l, err := LockUIDList(context.Background(), durable.OS{}, dir, LockOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d inside at once", n)
				}
				runtime.Gosched()
				inside.Add(-1)
				if err := l.Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestNextUIDValidity(t *testing.T) {
	now := time.Unix(0x60000000, 0)
	for _, c := range []struct {
		name  string
		files map[string]string
		want  uint32
		bad   bool
	}{
		{"none yet", nil, 0x60000000, false},
		{"Dovecot's", map[string]string{"dovecot-uidvalidity": golden(t, "dovecot/uidvalidity"), "dovecot-uidvalidity.6b027ccb": ""}, 0x6b027ccc, false},
		{"the mark alone", map[string]string{"dovecot-uidvalidity.6b027ccb": ""}, 0x6b027ccc, false},
		{"the file alone", map[string]string{"dovecot-uidvalidity": "6b027ccb\n"}, 0x6b027ccc, false},
		{"the file is ahead", map[string]string{"dovecot-uidvalidity": "6b027ccb", "dovecot-uidvalidity.00000005": ""}, 0x6b027ccc, false},
		{"two marks", map[string]string{"dovecot-uidvalidity.00000005": "", "dovecot-uidvalidity.00000007": ""}, 8, false},
		{"nonsense", map[string]string{"dovecot-uidvalidity": "hello", "dovecot-uidvalidity.xyz": ""}, 0x60000000, false},
		{"the end", map[string]string{"dovecot-uidvalidity.ffffffff": ""}, 0, true},
	} {
		dir := t.TempDir()
		for name, text := range c.files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := NextUIDValidity(durable.OS{}, dir, now)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%s: %x %v", c.name, got, err)
		}
		if err != nil {
			continue
		}
		if next, err := NextUIDValidity(durable.OS{}, dir, now); next != c.want+1 || err != nil {
			t.Errorf("%s: then %x %v", c.name, next, err)
		}
		b, err := os.ReadFile(filepath.Join(dir, UIDValidityName))
		if err != nil || string(b) != fmt.Sprintf("%08x", c.want+1) {
			t.Errorf("%s: %q %v", c.name, b, err)
		}
	}
}

// meanwhile calls once when the directory was read and the file opened, or found missing.
type meanwhile struct {
	durable.FS
	path string
	call func()
}

func (m *meanwhile) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := m.FS.OpenFile(name, flag, perm)
	if call := m.call; call != nil && name == m.path && flag == os.O_RDONLY {
		m.call = nil
		call()
	}
	return f, err
}

// Two others get their UIDVALIDITY, if they are let, after one has seen that there is no mark.
func TestNextUIDValidityOvertaken(t *testing.T) {
	now := time.Unix(0x60000000, 0)
	for _, text := range []string{"", "60000005"} {
		dir := t.TempDir()
		if text != "" {
			if err := os.WriteFile(filepath.Join(dir, UIDValidityName), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		seen := make(map[uint32]bool)
		take := func(fsys durable.FS) {
			v, err := NextUIDValidity(fsys, dir, now)
			if err != nil || seen[v] {
				t.Errorf("%q: %x %v, %v were given out", text, v, err, seen)
			}
			seen[v] = true
		}
		asked := false
		m := &meanwhile{FS: durable.OS{}, path: filepath.Join(dir, UIDValidityName), call: func() {
			asked = true
			l, err := durable.Lock(filepath.Join(dir, uidValidityLock), true)
			if errors.Is(err, durable.ErrLocked) {
				return // they wait
			}
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			take(durable.OS{})
			take(durable.OS{})
		}}
		take(m)
		take(durable.OS{})
		if !asked || len(seen) < 2 {
			t.Errorf("%q: %v, %v", text, asked, seen)
		}
	}
}

// Nobody gets what another one got.
func TestNextUIDValidityAtOnce(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	seen := make(map[uint32]bool)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				v, err := NextUIDValidity(durable.OS{}, dir, time.Now())
				mu.Lock()
				if err != nil || seen[v] {
					t.Errorf("%x %v", v, err)
				}
				seen[v] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}
