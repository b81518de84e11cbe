package mailtest

import (
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pennypost/internal/durable"
)

func crashWrite(t *testing.T, c *CrashFS, path, text string, sync bool) {
	t.Helper()
	f, err := c.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.Write([]byte(text))
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The model itself: what is synced always survives, what is not is sometimes lost.
func TestCrashFS(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(200) {
		c := NewCrashFS()
		if err := durable.MkdirAllOn(c, "/d/e", 0o700); err != nil {
			t.Fatal(err)
		}
		crashWrite(t, c, "/d/synced", "synced", true)
		if err := durable.SyncDirOn(c, "/d"); err != nil {
			t.Fatal(err)
		}
		crashWrite(t, c, "/d/nodata", "nodata", false)
		if err := durable.SyncDirOn(c, "/d"); err != nil {
			t.Fatal(err)
		}
		crashWrite(t, c, "/d/noname", "noname", true)
		if err := c.Rename("/d/synced", "/d/e/moved"); err != nil {
			t.Fatal(err)
		}
		after := c.Reboot(rand.New(rand.NewPCG(seed, 1)))
		names := after.Names("/d")
		moved := slices.Contains(after.Names("/d/e"), "moved")
		if moved == slices.Contains(names, "synced") {
			t.Fatalf("seed %d: the rename is not one change: %v %v", seed, names, after.Names("/d/e"))
		}
		if !slices.Contains(names, "nodata") {
			t.Fatalf("seed %d: a synced name is gone: %v", seed, names)
		}
		if moved {
			seen["moved"]++
		}
		if slices.Contains(names, "noname") {
			seen["noname"]++
		}
		if i, err := after.Lstat("/d/nodata"); err != nil {
			t.Fatal(err)
		} else if i.Size() == 0 {
			seen["nodata lost"]++
		}
	}
	for _, k := range []string{"moved", "noname", "nodata lost"} {
		if seen[k] < 20 || seen[k] > 180 {
			t.Errorf("%s: %d of 200", k, seen[k])
		}
	}
}

func TestCrashFSStops(t *testing.T) {
	c := NewCrashFS()
	c.StopAfter(2)
	f, err := c.OpenFile("/a", os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("whole")); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Write([]byte("part")); n != 2 || !errors.Is(err, ErrCrashed) {
		t.Errorf("the write too many: %d %v", n, err)
	}
	if err := f.Sync(); !errors.Is(err, ErrCrashed) {
		t.Errorf("a sync after the end: %v", err)
	}
	if i, err := c.Reboot(nil).Lstat("/a"); err != nil || i.Size() != 7 {
		t.Errorf("after the reboot: %v %v", i, err)
	}
}
