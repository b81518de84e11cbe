package maildir_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/maildir"
	"pennypost/internal/mailtest"
)

// place makes a file that is on stable storage, and the directories above it.
func place(t *testing.T, fsys durable.FS, name, text string) {
	t.Helper()
	err := durable.MkdirAllOn(fsys, path.Dir(name), 0o700)
	if err == nil {
		err = durable.WriteFileOn(fsys, name, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func contents(fsys durable.FS, name string) (string, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(f)
	return string(b), errors.Join(err, f.Close())
}

func entries(t *testing.T, fsys durable.FS, dir string) []string {
	t.Helper()
	f, err := fsys.OpenFile(dir, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func takeOver(fsys durable.FS) error {
	lock, err := maildir.LockUIDList(context.Background(), fsys, "/m", maildir.LockOptions{Host: "h"})
	if err != nil {
		return err
	}
	_, err = maildir.TakeOverCourier(context.Background(), fsys, "/m", "/m", "/m", lock, time.Unix(1e9, 0))
	return errors.Join(err, lock.Unlock())
}

// The machine stops after each operation of a take-over from Courier. Whatever is left, the next
// take-over ends as an undisturbed one does; and one that was told to be done, is.
func TestTakeOverCrash(t *testing.T) {
	long := ""
	for i := range 27 {
		long += string(rune('a'+i%26)) + strings.Repeat("x", i) + "\n"
	}
	for stop := 0; ; stop++ {
		finished := false
		for seed := range uint64(5) {
			c := mailtest.NewCrashFS()
			for name, text := range map[string]string{
				"/m/tmp/x": "", "/m/cur/a:2,S": "a", "/m/cur/b:2,": "b", "/m/new/c": "c",
				"/m/courierimapuiddb": "1 7 4\n1 a\n2 b\n3 c\n", "/m/courierpop3dsizelist": "/3 4 9\na 1 1:9:0\n",
				"/m/courierimapkeywords/:list": "foo\n\na:0\nc:0\n", "/m/courierimapkeywords/b": long,
			} {
				place(t, c, name, text)
			}
			c.StopAfter(stop)
			done := takeOver(c) == nil
			finished = finished || done
			fsys := c.Reboot(rand.New(rand.NewPCG(seed, uint64(stop))))
			if err := fsys.Remove("/m/" + maildir.UIDListName + ".lock"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if _, err := contents(fsys, "/m/"+maildir.UIDListName); done && err != nil {
				t.Fatalf("stop %d: done, and then: %v", stop, err)
			}
			if err := takeOver(fsys); err != nil {
				t.Fatalf("stop %d: again: %v", stop, err)
			}
			text, err := contents(fsys, "/m/"+maildir.UIDListName)
			if err != nil || text != "3 V7 N4\n1 PUID1-9 :a\n2 :b\n3 :c\n" {
				t.Fatalf("stop %d, cut %d: %q %v", stop, seed, text, err)
			}
			got := append(entries(t, fsys, "/m/cur"), entries(t, fsys, "/m/new")...)
			if want := "a:2,Sa b:2,bcdefghijklmnopqrstuvwxyz c:2,a"; strings.Join(got, " ") != want {
				t.Fatalf("stop %d, cut %d: %q", stop, seed, got)
			}
			meta, err := maildir.ReadMeta(fsys, "/m")
			if err != nil || len(meta.Tagged["b"]) != 2 || len(meta.Keywords) != 2 {
				t.Fatalf("stop %d, cut %d: %+v %v", stop, seed, meta, err)
			}
		}
		if finished {
			if stop < 20 {
				t.Fatalf("only %d operations: the file system is not used", stop)
			}
			return
		}
	}
}

// A UIDVALIDITY that was given out is never given out again.
func TestNextUIDValidityCrash(t *testing.T) {
	for stop := 0; ; stop++ {
		finished := false
		for seed := range uint64(10) {
			c := mailtest.NewCrashFS()
			place(t, c, "/m/x", "")
			c.StopAfter(stop)
			told := map[uint32]bool{}
			for range 3 {
				v, err := maildir.NextUIDValidity(c, "/m", time.Unix(1e9, 0))
				if err != nil {
					break
				}
				told[v] = true
			}
			finished = finished || len(told) == 3
			fsys := c.Reboot(rand.New(rand.NewPCG(seed, uint64(stop))))
			v, err := maildir.NextUIDValidity(fsys, "/m", time.Unix(1e9, 0))
			if err != nil || told[v] {
				t.Fatalf("stop %d, cut %d: %d, %v were told: %v", stop, seed, v, told, err)
			}
		}
		if finished {
			return
		}
	}
}
