package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// command is one long-running process of the instance.
type command struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
}

// grace is how long a process may take over SIGTERM before it is killed: longer than mqueue
// gives its workers to finish.
const grace = 20 * time.Second

// supervise starts everything in dir/run/commands.json, writes dir/pids, and waits for
// SIGTERM. It ends only when no process it started, nor any child of those, is left. It holds
// dir/run/lock all the time: whoever gets that lock knows that nothing runs.
func supervise(dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, "run/lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s runs already", dir)
	}
	defer lock.Close()
	if err := adoptOrphans(); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP)
	b, err := os.ReadFile(filepath.Join(dir, "run/commands.json"))
	if err != nil {
		return err
	}
	var cmds []command
	if err := json.Unmarshal(b, &cmds); err != nil {
		return err
	}
	running := make(map[int]string)
	for _, c := range cmds {
		var pid int
		if pid, err = start(dir, c); err != nil {
			fmt.Fprintf(os.Stderr, "sandbox: %s: %v\n", c.Name, err)
			break
		}
		running[pid] = c.Name
		if err = writePids(dir, pid, c.Name); err != nil {
			break
		}
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "run/supervisor"), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
	}
	if err == nil {
		wait(running, stop)
	}
	end(running)
	return errors.Join(err, os.Remove(filepath.Join(dir, "run/supervisor")))
}

// writePids appends to dir/pids, which "up" has emptied.
func writePids(dir string, pid int, name string) error {
	f, err := os.OpenFile(filepath.Join(dir, "pids"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%d %s\n", pid, name)
	return errors.Join(err, f.Close())
}

func start(dir string, c command) (int, error) {
	log, err := os.OpenFile(filepath.Join(dir, "log", c.Name+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	var env []string
	for _, e := range os.Environ() {
		// What started us is nobody's business below: a service manager's variables would
		// be taken for our own.
		if !strings.HasPrefix(e, "LISTEN_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") && !strings.HasPrefix(e, "PENNYPOST_CONFIG=") {
			env = append(env, e)
		}
	}
	p, err := os.StartProcess(c.Args[0], c.Args, &os.ProcAttr{Dir: dir, Env: env, Files: []*os.File{null, log, log}})
	if err != nil {
		return 0, err
	}
	pid := p.Pid
	// All children are waited for in one place, adopted ones included.
	return pid, p.Release()
}

// reap collects every child that has ended; none is true when there is no child left.
func reap(running map[int]string) (none bool) {
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return true
		case err != nil || pid == 0:
			return false
		}
		if name, ok := running[pid]; ok {
			fmt.Fprintf(os.Stderr, "%s %s[%d] ended: status %d signal %d\n", time.Now().UTC().Format(time.RFC3339), name, pid, st.ExitStatus(), st.Signal())
			delete(running, pid)
		}
	}
}

func wait(running map[int]string, stop <-chan os.Signal) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	reap(running)
	for {
		select {
		case <-stop:
			return
		case <-died:
			reap(running)
		}
	}
}

// end asks all children to stop, adopted ones as they appear, and kills what does not.
func end(running map[int]string) {
	asked := make(map[int]bool)
	for pid := range running {
		ask(pid, asked)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); !reap(running); <-tick.C {
		for _, pid := range children() {
			if time.Since(begin) > grace {
				fmt.Fprintf(os.Stderr, "%s %d does not end; killed\n", time.Now().UTC().Format(time.RFC3339), pid)
				ignore(unix.Kill(pid, unix.SIGKILL))
				continue
			}
			ask(pid, asked)
		}
	}
}

func ask(pid int, asked map[int]bool) {
	if !asked[pid] {
		asked[pid] = true
		ignore(unix.Kill(pid, unix.SIGTERM))
	}
}

// ignore is for signals to processes that may have ended in between.
func ignore(error) {}

// down stops what runs in dir and returns when all of it has ended.
func down(dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, "run/lock"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // never started
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		if err := stopSupervisor(dir, lock); err != nil {
			return err
		}
	}
	stopLeftovers(dir)
	return errors.Join(os.WriteFile(filepath.Join(dir, "pids"), nil, 0o644))
}

// stopSupervisor sends SIGTERM and waits for the lock, which the supervisor keeps to its end.
func stopSupervisor(dir string, lock *os.File) error {
	file := filepath.Join(dir, "run/supervisor")
	for tries := 0; ; tries++ {
		b, err := os.ReadFile(file)
		if err == nil {
			pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			ignore(unix.Kill(pid, unix.SIGTERM))
			break
		}
		// It is still starting, or just ending.
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return nil
		}
		if tries > 500 {
			return fmt.Errorf("%s: the supervisor holds its lock but names no pid: %w", dir, err)
		}
		pause()
	}
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// stopLeftovers ends what a killed supervisor left behind. A pid counts only while the
// process still has our configuration in its command line.
func stopLeftovers(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "pids"))
	if err != nil {
		return
	}
	var left []int
	for l := range strings.Lines(string(b)) {
		num, _, _ := strings.Cut(l, " ")
		pid, err := strconv.Atoi(num)
		if err != nil {
			continue
		}
		if ours(dir, pid) {
			ignore(unix.Kill(pid, unix.SIGTERM))
			left = append(left, pid)
		}
	}
	for begin := time.Now(); len(left) > 0; pause() {
		var still []int
		for _, pid := range left {
			if !ours(dir, pid) {
				continue
			}
			still = append(still, pid)
			if time.Since(begin) > grace {
				ignore(unix.Kill(pid, unix.SIGKILL))
			}
		}
		left = still
	}
}

func ours(dir string, pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(b), dir+"/")
}

func pause() { time.Sleep(10 * time.Millisecond) }
