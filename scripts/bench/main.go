// Command bench measures what the tools cost, side by side with Postfix where that is installed
// and we are root: micro-benchmarks, start-up, inject, accept, local, relay, fan-out, syncs,
// and sessions under inetd. Peers take turns, every figure is the median of three rounds, and
// the disk's own speed is probed before each durable row. Ratios within one run count; absolute
// times are this machine's and this hour's.
//
//	go run ./scripts/bench [--dir DIR] [--rounds 3] [--scale 1] [ROW...]
//
// ROWs are micro start-up inject accept local relay fan-out syncs inetd idle first-answer limit
// pop3 store (both beside Dovecot); default all. DIR must be on the disk to be measured (default: a new directory below /var/tmp).
//
// A measuring harness of somebody else can drive an instance of ours:
//
//	bench setup DIR     writes DIR/pennypost.toml. From the environment: SMTP_PORT; ALICE, a
//	                    directory: alice@example.test is delivered to $ALICE/Maildir; SINK_PORT:
//	                    sink.test and *.sink.test go to 127.0.0.1:$SINK_PORT; DEAD_PORT: so does
//	                    dead.test, where nobody should listen. 127.0.0.1 may relay.
//	bench start DIR     runs msmtpd and mqueue for it in the foreground until SIGTERM
//	msend --config DIR/pennypost.toml, mqueue --config DIR/pennypost.toml list
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// bench is one run: where, how much, against whom.
type bench struct {
	dir    string
	bin    string
	rounds int
	scale  float64
	begin  time.Time
	peers  []*peer // ours first
	extra  []*peer // other instances of ours, to be stopped with them
	sink   int     // port where both send sink.test
	out    *report
	notes  []string // why something was not measured
}

type row struct {
	name string
	run  func(*bench) error
}

var rows = []row{
	{"micro", (*bench).micro},
	{"start-up", (*bench).startUp},
	{"inject", (*bench).inject},
	{"accept", (*bench).accept},
	{"local", (*bench).local},
	{"relay", (*bench).relay},
	{"fan-out", (*bench).fanOut},
	{"syncs", (*bench).syncs},
	{"inetd", (*bench).inetd},
	{"idle", (*bench).idle},
	{"first-answer", (*bench).firstAnswer},
	{"limit", (*bench).limit},
	{"pop3", (*bench).pop3},
	{"store", (*bench).store},
}

func run(args []string) error {
	if len(args) == 2 && args[0] == "setup" {
		return setup(args[1])
	}
	if len(args) == 2 && args[0] == "store-steps" {
		return storeSteps(args[1])
	}
	if len(args) == 2 && args[0] == "start" {
		return start(args[1])
	}
	b := &bench{out: &report{}, begin: time.Now()}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&b.dir, "dir", "", "directory on the disk to measure")
	f.IntVar(&b.rounds, "rounds", 3, "rounds; the median counts")
	f.Float64Var(&b.scale, "scale", 1, "factor on all message counts")
	if err := f.Parse(args); err != nil {
		return err
	}
	for _, want := range f.Args() {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.name == want }) {
			return fmt.Errorf("no row %q", want)
		}
	}
	top, err := os.Getwd()
	if err != nil {
		return err
	}
	b.bin = filepath.Join(top, "bin")
	tmp, err := os.MkdirTemp(tempBase(b.dir), "pennypost-bench-")
	if err != nil {
		return err
	}
	b.dir = tmp
	defer os.RemoveAll(tmp)
	// Others' daemons run as other users below it.
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	defer b.stopPeers()
	var failed []error
	for _, r := range rows {
		if f.NArg() > 0 && !slices.Contains(f.Args(), r.name) {
			continue
		}
		fmt.Printf("== %s\n", r.name)
		begin := time.Now()
		if err := r.run(b); err != nil { // the other rows are worth having
			failed = append(failed, fmt.Errorf("%s: %w", r.name, err))
			fmt.Printf("FAILED %v\n", err)
		}
		b.out.flush()
		fmt.Printf("   (%.0f s)\n", time.Since(begin).Seconds())
	}
	b.summary()
	return errors.Join(failed...)
}

func tempBase(dir string) string {
	if dir != "" {
		return dir
	}
	return "/var/tmp"
}

// n scales a count.
func (b *bench) n(count int) int { return max(1, int(float64(count)*b.scale)) }

func (b *bench) skip(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
	fmt.Printf("skipped: %s\n", b.notes[len(b.notes)-1])
}

func have(tool string) bool {
	_, err := exec.LookPath(tool)
	return err == nil
}

// summary says which budgets were met.
func (b *bench) summary() {
	var missed []string
	n := 0
	for _, l := range b.out.done {
		switch l.verdict {
		case "met":
			n++
		case "MISSED":
			missed = append(missed, l.name)
		}
	}
	fmt.Printf("== budgets met: %d", n)
	if len(missed) > 0 {
		fmt.Printf("; missed: %d (%s)", len(missed), strings.Join(missed, "; "))
	}
	fmt.Println()
}
