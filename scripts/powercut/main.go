// Command powercut shows that what our programs call safe survives a power cut, and that it
// would notice if it did not.
//
// It serves a disk over FUSE, puts a real ext4 or xfs on it, and lets a program write mail
// there. Every write and flush that reaches the disk is recorded, and each acknowledgement of
// the program is stamped with the number of records before it. Then it builds what the disk
// would hold had the power failed at some moment, with a random part of what was not flushed,
// mounts that, and looks for every message acknowledged before.
//
// Wrong writers, and our own code with one of its syncs taken out, must lose mail here: they
// are the test of the test.
//
//	go run ./scripts/powercut            short form, about a minute
//	go run ./scripts/powercut -long      more time and cuts for each case
//	go run ./scripts/powercut -run REGEXP
//	go run ./scripts/powercut measure    direct creation against tmp + rename, on this disk
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"pennypost/internal/spool"
)

// otherID is the uid and gid of writers who may put files into incoming/ but not open it.
const otherID = 65534

// testcase is one program on one file system.
type testcase struct {
	name  string
	fs    string // ext4 or xfs
	mount string // options
	blind bool   // incoming/ is 3730 and the writer neither root nor its owner
	// prepare makes the store in dir, scan finds the whole messages in it after a cut.
	prepare func(c *testcase, dir string) error
	scan    func(dir string, o *outcome) (map[string]bool, error)
	// run lets the program write until the time is over; ack is called for what it calls safe.
	run  func(ctx context.Context, c *testcase, dir string, ack func(token string)) error
	cuts int
	time time.Duration
	loss bool // expected
}

func (c *testcase) where() string { return strings.TrimSpace(c.fs + " " + c.mount) }

func main() {
	if len(os.Args) > 1 && os.Args[1] == "writer" {
		if err := writer(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "powercut writer:", err)
			os.Exit(1)
		}
		return
	}
	long := flag.Bool("long", false, "more time and cuts for each case")
	pattern := flag.String("run", "", "only cases whose name matches `REGEXP`")
	seed := flag.Uint64("seed", 1, "of the cuts")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if why := needs(); why != "" {
		fmt.Println("skipped:", why)
		return
	}
	var err error
	if flag.Arg(0) == "measure" {
		err = measure(ctx)
	} else {
		err = run(ctx, *long, *pattern, *seed)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, long bool, pattern string, seed uint64) (err error) {
	only, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	l, err := newLab()
	if l != nil {
		defer func() { err = errors.Join(err, l.back(0)) }()
	}
	if err != nil {
		return err
	}
	progs, err := build(ctx, l.dir)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	var n, wrong, acks, cuts, checked int
	for _, c := range cases(progs) {
		if !only.MatchString(c.name + " " + c.where()) {
			continue
		}
		if long {
			c.cuts *= 10
			c.time *= 4
		}
		start := time.Now()
		o, err := l.try(ctx, c, rng)
		if err != nil {
			return fmt.Errorf("%s on %s: %w", c.name, c.where(), err)
		}
		verdict := "ok    "
		switch {
		case o.acks == 0:
			verdict = "FAILED: nothing was acknowledged"
		case o.loss() && !c.loss:
			verdict = "FAILED: mail lost, first " + o.firstLost
		case !o.loss() && c.loss:
			verdict = "FAILED: a loss was not noticed"
		}
		if verdict != "ok    " {
			wrong++
		}
		fmt.Printf("%s %-28s %-22s %4.1f s %s\n", verdict, c.name, c.where(), time.Since(start).Seconds(), o)
		n, acks, cuts, checked = n+1, acks+o.acks, cuts+o.cuts, checked+o.checked
	}
	fmt.Printf("powercut: %d cases, %d wrong; %d messages acknowledged, %d power cuts, %d checks\n", n, wrong, acks, cuts, checked)
	if wrong > 0 || n == 0 {
		return fmt.Errorf("%d of %d cases are not as they must be", wrong, n)
	}
	return nil
}

// try lets the program of a case write on a fresh disk and then cuts the power.
func (l *lab) try(ctx context.Context, c *testcase, rng *rand.Rand) (o *outcome, err error) {
	mark := len(l.undo)
	defer func() { err = errors.Join(err, l.back(mark)) }()
	d, dev, err := l.format(c.fs)
	if err != nil {
		return nil, err
	}
	mounted := len(l.undo)
	m, err := l.mount(dev, c.mount)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(m, "d")
	if err := errors.Join(os.Chmod(m, 0o711), c.prepare(c, dir)); err != nil {
		return nil, err
	}
	if _, err := sh("sync", "-f", m); err != nil {
		return nil, err
	}
	base := d.record()
	var acks []ack
	ctx, cancel := context.WithTimeout(ctx, c.time+30*time.Second)
	defer cancel()
	err = c.run(ctx, c, dir, func(token string) { acks = append(acks, ack{d.now(), token}) })
	log := d.stop()
	if err = errors.Join(err, l.back(mounted)); err != nil {
		return nil, err
	}
	return l.cut(c, base, log, acks, rng)
}

// format makes a fresh disk with a file system. Below 300 MiB mkfs.xfs refuses.
func (l *lab) format(fs string) (*disk, string, error) {
	size := int64(64 << 20)
	args := []string{"-q", "-F"}
	if fs == "xfs" {
		size, args = 320<<20, []string{"-q", "-f"}
	}
	d, dev, err := l.attach(newImage(size))
	if err == nil {
		_, err = sh("mkfs."+fs, append(args, dev)...)
	}
	return d, dev, err
}

func prepareSpool(c *testcase, dir string) error {
	if !c.blind {
		return spool.Init(dir)
	}
	return spool.InitGroup(dir, otherID)
}

func prepareMaildir(_ *testcase, dir string) error {
	for _, d := range []string{"", "tmp", "new", "cur"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	return nil
}
