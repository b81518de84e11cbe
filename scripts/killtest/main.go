// Command killtest submits messages to a private mail system while its processes are killed
// with SIGKILL at random moments, and then compares what was accepted with what is in the
// Maildir: everything accepted is there, whole; doubles are counted, and allowed only because
// of kills.
//
//	go run ./scripts/killtest [--bin DIR] [--messages N] [--kills N] [--seed N] [--lose]
//
// --lose is the test of the test: one accepted message is removed from the Maildir before the
// comparison, which must then fail.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"

	"pennypost/internal/mailtest"
)

func main() {
	var o options
	flag.StringVar(&o.Bin, "bin", "", "directory of the programs; built when empty")
	flag.IntVar(&o.Messages, "messages", 5000, "accepted messages to reach")
	flag.IntVar(&o.Kills, "kills", 200, "kills to reach")
	flag.Uint64Var(&o.Seed, "seed", uint64(time.Now().UnixNano()), "of the choice of victims")
	flag.BoolVar(&o.Lose, "lose", false, "remove an accepted message before comparing, which must fail")
	flag.BoolVar(&o.Keep, "keep", false, "keep the files")
	flag.DurationVar(&o.Limit, "limit", 4*time.Minute, "time for all of it")
	flag.Parse()
	if err := runMain(&o); err != nil {
		fmt.Fprintf(os.Stderr, "killtest: %v\n", err)
		os.Exit(1)
	}
}

func runMain(o *options) error {
	if o.Bin == "" {
		dir, err := os.MkdirTemp("", "pp-killtest-bin")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := build(dir); err != nil {
			return err
		}
		o.Bin = dir
	}
	r, err := run(o)
	if r != nil {
		fmt.Println(r)
	}
	return err
}

func build(dir string) error {
	root, err := mailtest.Root()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-tags", "urfave_cli_no_docs", "-buildvcs=false", "-o", dir+"/", "./cmd/msend", "./cmd/mqueue", "./cmd/mdeliver", "./cmd/mrelay", "./cmd/msmtpd")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	return nil
}
