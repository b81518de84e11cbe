package policy

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pennypost/internal/durable"
)

// The test binary is also the process that shares a state file.
func TestMain(m *testing.M) {
	path := os.Getenv("POLICY_TEST_TABLE")
	if path == "" {
		os.Exit(m.Run())
	}
	n, _ := strconv.Atoi(os.Getenv("POLICY_TEST_COUNT"))
	tab := &table{path: path, buckets: 4}
	for i := 0; n == 0 || i < n; i++ {
		if err := bump(tab, "k"+strconv.Itoa(i%50)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(0)
}

func child(path string, count int) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "POLICY_TEST_TABLE="+path, "POLICY_TEST_COUNT="+strconv.Itoa(count))
	return cmd
}

// bump adds one to the record of name.
func bump(t *table, name string) error {
	return t.update('x', []string{name}, func(key uint64, b *bucket) {
		i, r, ok := b.find(key)
		if !ok {
			i, r = b.place(func(r record) int64 { return int64(r.last) }), record{key: key}
		}
		r.c++
		b.put(i, r)
	})
}

func count(t *testing.T, tab *table, name string) (n uint32) {
	t.Helper()
	err := tab.update('x', []string{name}, func(key uint64, b *bucket) {
		_, r, _ := b.find(key)
		n = r.c
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTableIsShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "state")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if out, err := child(path, 500).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	tab := &table{path: path, buckets: 4}
	for range 3 { // goroutines of one process beside them
		wg.Go(func() {
			for i := range 500 {
				if err := bump(tab, "k"+strconv.Itoa(i%50)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range 50 {
		if n := count(t, tab, "k"+strconv.Itoa(i)); n != 70 {
			t.Errorf("k%d: %d, want 70", i, n)
		}
	}
}

// A process that is killed at any point leaves a file that others go on with.
func TestTableSurvivesKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	tab := &table{path: path, buckets: 4}
	last := uint32(0)
	for range 5 {
		cmd := child(path, 0)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); count(t, tab, "k49") <= last; { // it is at work
			if time.Now().After(end) {
				t.Fatal("the other process does nothing")
			}
			if err := bump(tab, "mine"); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // its status is that of the signal
		if n := count(t, tab, "k49"); n < last {
			t.Fatalf("%d after %d", n, last)
		} else {
			last = n
		}
	}
	if n := count(t, tab, "k49"); n != last {
		t.Errorf("%d, want %d", n, last)
	}
}

func TestTableOpens(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good")
	if err := bump(&table{path: good, buckets: 2}, "a"); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil || len(whole) != 3*blockSize {
		t.Fatalf("%d octets, %v", len(whole), err)
	}
	flip := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	for _, c := range []struct {
		name string
		data []byte
		want uint32 // count of a after one more
		err  error
	}{
		{"whole", whole, 2, nil},
		{"empty", nil, 1, nil},
		{"killed before the header", make([]byte, 3*blockSize), 1, nil},
		{"cut behind the header", whole[:blockSize], 1, nil},
		{"cut in the header", whole[:100], 0, errForeign},
		{"another program's", []byte("some text\n"), 0, errForeign},
		{"a newer version", flip(len(magic) - 2), 0, errForeign},
		{"a broken seed", flip(seedAt), 0, errForeign},
		{"a broken size", flip(bucketsAt), 0, errForeign},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			tab := &table{path: path, buckets: 2}
			if err := bump(tab, "a"); !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if c.err != nil {
				if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, c.data) {
					t.Errorf("a file that is not ours was changed: %v", err)
				}
				return
			}
			if n := count(t, tab, "a"); n != c.want {
				t.Errorf("count %d, want %d", n, c.want)
			}
		})
	}
}

// Each octet of a record counts: a torn one is not believed.
func TestTornRecord(t *testing.T) {
	var block [blockSize]byte
	b := &bucket{block: &block}
	b.put(3, record{key: 77, a: 1, b: 2, c: 3, pid: 4, last: 5})
	if i, r, ok := b.find(77); !ok || i != 3 || r != (record{key: 77, a: 1, b: 2, c: 3, pid: 4, last: 5}) {
		t.Fatalf("%d %+v %v", i, r, ok)
	}
	for i := range recordSize {
		block[3*recordSize+i] ^= 0x40
		if _, _, ok := b.find(77); ok {
			t.Errorf("octet %d does not matter", i)
		}
		block[3*recordSize+i] ^= 0x40
	}
}

func TestPlace(t *testing.T) {
	var block [blockSize]byte
	b := &bucket{block: &block}
	worth := func(r record) int64 { return int64(r.last) }
	for n := range perBucket {
		i := b.place(worth)
		b.put(i, record{key: uint64(n) + 1, last: uint32(1000 - n)})
	}
	if i := b.place(worth); i != perBucket-1 {
		t.Errorf("place %d, want the oldest", i)
	}
	b.clear(9)
	if i := b.place(worth); i != 9 {
		t.Errorf("place %d, want the free one", i)
	}
}

func TestDryRunWritesNothing(t *testing.T) {
	dir := t.TempDir()
	tab := &table{path: filepath.Join(dir, "sub", "state"), buckets: 2, dry: true}
	if err := bump(tab, "a"); err != nil {
		t.Fatal(err)
	}
	if des, err := os.ReadDir(dir); err != nil || len(des) != 0 {
		t.Errorf("made %v, %v", des, err)
	}
	path := filepath.Join(dir, "state")
	if err := bump(&table{path: path, buckets: 2}, "a"); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tab = &table{path: path, dry: true}
	if err := bump(tab, "a"); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("changed: %v", err)
	}
	if n := count(t, tab, "a"); n != 1 {
		t.Errorf("count %d", n)
	}
}

// A process that was stopped while it held the lock costs others a moment, not their mail.
func TestTableLockedForLong(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the bound of the lock")
	}
	path := filepath.Join(t.TempDir(), "state")
	l, err := durable.Lock(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tab := &table{path: path, buckets: 2}
	start := time.Now()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := bump(tab, "a"); !errors.Is(err, errBusy) {
				t.Errorf("%v", err)
			}
		})
	}
	all.Wait()
	if d := time.Since(start); d > 2*lockWait {
		t.Errorf("20 clients waited %v, one after the other", d)
	}
}

// close ends the use of the file; a later update opens it again.
func (t *table) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.f == nil {
		return nil
	}
	err := t.f.Close()
	t.f = nil
	return err
}

// Whatever stands in a state file, the checks work or say that they cannot.
func FuzzTable(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed")
	tab := &table{path: path, buckets: 1}
	for _, n := range strings.Fields("a b c d") {
		if err := bump(tab, n); err != nil {
			f.Fatal(err)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, "a")
	f.Add(whole[:blockSize], "b")
	f.Add(whole[:blockSize+100], "c")
	f.Add([]byte{}, "d")
	file := filepath.Join(f.TempDir(), "state")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		tab := &table{path: file, buckets: 1}
		defer tab.close()
		dry := &table{path: file, buckets: 1, dry: true}
		defer dry.close()
		var before uint32
		dryErr := dry.update('x', []string{name}, func(key uint64, b *bucket) {
			_, r, _ := b.find(key)
			before = r.c
		})
		err := bump(tab, name)
		if err != nil {
			if !errors.Is(err, errForeign) {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, data) {
				t.Fatal("a file that is not ours was changed")
			}
			return
		}
		if n := count(t, tab, name); dryErr == nil && n != before+1 {
			t.Fatalf("%d after %d", n, before)
		}
		if fi, err := os.Stat(file); err != nil || fi.Size() > int64(max(len(data), (1+maxBuckets)*blockSize)) {
			t.Fatalf("%v %v", fi.Size(), err)
		}
	})
}
