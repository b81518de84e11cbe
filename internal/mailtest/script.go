package mailtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience bounds every wait of a script. It is long because a loaded machine is no bug.
const patience = 60 * time.Second

// RunScripts runs the txtar scripts of a directory. Beside testscript's own commands there are:
//
//	exits N command...            the command ends with exit status N
//	waitfor [-out RE] command...  run it until it exits 0 (and its stdout matches RE)
//	instance [-n NAME] up [-x FILE] [domain...]
//	                              a private mail system; FILE holds further configuration lines
//	                              with $variables of the script. Its variables (PENNYPOST_CONFIG,
//	                              PP_MX, ...) are set, with -n as NAME_PP_MX too
//	instance [-n NAME] make ...   the same without starting it: its ports refuse connections
//	instance [-n NAME] use|down|start P|stop P|kill P
//	                              P is mqueue or msmtpd
//	dns FILE                      a name server with the master file, $variables in it replaced;
//	                              DNS is set to its address
//	answer SOCKET FILE            a server on a UNIX socket, for one line each way: the rest of the
//	                              first line in FILE whose first word is in the question; "-" is
//	                              silence, no such line hangs up. FILE is read at each question
//	answer -leave SOCKET          that server dies and leaves the file of its socket
//	mailbox [-n NAME] ADDRESS N [FILE...]
//	                              wait until there are N messages, copy them to the files
func (b *Tools) RunScripts(t *testing.T, dir string) {
	bin := b.Dir(t)
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			for _, v := range []string{"PENNYPOST_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME"} {
				env.Setenv(v, "")
			}
			s := &script{bin: bin, instances: map[string]*Instance{}, answers: map[string]*net.UnixListener{}}
			env.Values[scriptKey{}] = s
			env.Defer(func() { s.close(env.T()) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": cmdExits, "waitfor": cmdWaitfor, "instance": cmdInstance, "mailbox": cmdMailbox, "dns": cmdDNS, "answer": cmdAnswer,
		},
	})
}

type scriptKey struct{}

// script is the state of one running script.
type script struct {
	bin       string
	instances map[string]*Instance
	answers   map[string]*net.UnixListener
}

func (s *script) close(t testscript.T) {
	for _, l := range s.answers {
		l.Close()
	}
	for name, in := range s.instances {
		if log := in.Log(); log != "" && t.Verbose() {
			t.Log(fmt.Sprintf("instance %q:\n%s", name, log))
		}
		if err := in.Close(); err != nil {
			t.Log(fmt.Sprintf("instance %q: %v", name, err))
		}
	}
}

func stateOf(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N command...")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		ts.Fatalf("exits: %q is no exit status", args[0])
	}
	got, err := exitStatus(ts.Exec(args[1], args[2:]...))
	if err != nil {
		ts.Fatalf("exits: %v", err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func exitStatus(err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	}
	return -1, err
}

func cmdWaitfor(ts *testscript.TestScript, neg bool, args []string) {
	var out *regexp.Regexp
	if len(args) > 2 && args[0] == "-out" {
		re, err := regexp.Compile("(?m)" + args[1])
		ts.Check(err)
		out, args = re, args[2:]
	}
	if neg || len(args) == 0 {
		ts.Fatalf("usage: waitfor [-out RE] command...")
	}
	var last error
	ok := Wait(patience, func() bool {
		last = ts.Exec(args[0], args[1:]...)
		return last == nil && (out == nil || out.MatchString(ts.ReadFile("stdout")))
	})
	if !ok {
		ts.Logf("%s", allLogs(ts))
		ts.Fatalf("waited %v for: %s: %v", patience, strings.Join(args, " "), last)
	}
}

func allLogs(ts *testscript.TestScript) string {
	var b strings.Builder
	for _, in := range stateOf(ts).instances {
		b.WriteString(in.Log())
	}
	return b.String()
}

// instanceName takes "-n NAME" off the arguments.
func instanceName(args []string) (name string, rest []string) {
	if len(args) > 2 && args[0] == "-n" {
		return args[1], args[2:]
	}
	return "", args
}

func cmdInstance(ts *testscript.TestScript, neg bool, args []string) {
	name, args := instanceName(args)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: instance [-n NAME] up|make|use|down|start|stop|kill ...")
	}
	s := stateOf(ts)
	verb, args := args[0], args[1:]
	if verb == "up" || verb == "make" {
		s.up(ts, name, verb, args)
		return
	}
	in := s.instances[name]
	if in == nil {
		ts.Fatalf("instance %q is not up", name)
	}
	process := ""
	if len(args) == 1 {
		process = args[0]
	}
	switch verb {
	case "use":
		setAll(ts, "", in)
	case "down":
		ts.Check(in.Down())
	case "start":
		ts.Check(in.Start(process))
	case "stop":
		ts.Check(in.Stop(process, syscall.SIGTERM))
	case "kill":
		ts.Check(in.Stop(process, syscall.SIGKILL))
	default:
		ts.Fatalf("instance: unknown verb %q", verb)
	}
}

func (s *script) up(ts *testscript.TestScript, name, verb string, args []string) {
	in := s.instances[name]
	if in == nil {
		o := InstanceOptions{Bin: s.bin, Env: []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "TMPDIR=" + ts.Getenv("TMPDIR")}}
		if len(args) >= 2 && args[0] == "-x" {
			o.Extra = os.Expand(ts.ReadFile(args[1]), ts.Getenv)
			args = args[2:]
		}
		o.Domains = args
		var err error
		in, err = NewInstance(o)
		ts.Check(err)
		s.instances[name] = in
	}
	if verb == "up" {
		ts.Check(in.Up())
	}
	setAll(ts, "", in)
	if name != "" {
		setAll(ts, name+"_", in)
	}
}

func setAll(ts *testscript.TestScript, prefix string, in *Instance) {
	for _, kv := range in.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		ts.Setenv(prefix+k, v)
	}
}

func cmdMailbox(ts *testscript.TestScript, neg bool, args []string) {
	name, args := instanceName(args)
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mailbox [-n NAME] ADDRESS N [FILE...]")
	}
	in := stateOf(ts).instances[name]
	if in == nil {
		ts.Fatalf("instance %q is not up", name)
	}
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	var files []string
	ok := Wait(patience, func() bool {
		files, err = in.Mail(args[0])
		return err != nil || len(files) >= want
	})
	ts.Check(err)
	if !ok || len(files) != want {
		ts.Logf("%s", allLogs(ts))
		ts.Fatalf("%d messages for %s, want %d", len(files), args[0], want)
	}
	for i, dst := range args[2:] {
		if i >= len(files) {
			ts.Fatalf("only %d messages", len(files))
		}
		data, err := os.ReadFile(files[i])
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(filepath.FromSlash(dst)), data, 0o600))
	}
}

func cmdDNS(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: dns FILE")
	}
	d, err := NewDNS("127.0.0.1:0", "")
	ts.Check(err)
	ts.Defer(d.Close)
	ts.Check(d.SetZone(os.Expand(ts.ReadFile(args[0]), ts.Getenv)))
	ts.Setenv("DNS", d.Addr())
}
