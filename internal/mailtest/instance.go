package mailtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pennypost/internal/spool"
)

// InstanceOptions say what a private mail system is like.
type InstanceOptions struct {
	Bin     string   // directory of the programs
	Domains []string // local domains; default example.test
	Users   []string // local parts, each with the password "secret"; default alice and bob
	Extra   string   // lines of the configuration, in front of its sections
	Env     []string // environment of its processes; nil: that of the test
}

// Instance is one mail system below one directory, under the uid of the test: mqueue run and
// msmtpd with a listener for each role. Its sockets are opened by the test and passed down, so
// its ports are the kernel's choice and connections wait while it restarts.
type Instance struct {
	Dir, Config, Spool, Maildirs, Socket string
	MX, Submission, Submissions          string // host:port

	o       InstanceOptions
	sockets []passedSocket
	procs   map[string]*exec.Cmd
}

type passedSocket struct {
	role string
	file *os.File
}

// NewInstance writes the files of an instance and opens its sockets. Nothing runs yet.
func NewInstance(o InstanceOptions) (*Instance, error) {
	if len(o.Domains) == 0 {
		o.Domains = []string{"example.test"}
	}
	if len(o.Users) == 0 {
		o.Users = []string{"alice", "bob"}
	}
	// Not below a test's own directory: paths of UNIX sockets are short.
	dir, err := os.MkdirTemp("", "pp")
	if err != nil {
		return nil, err
	}
	in := &Instance{
		Dir: dir, Config: filepath.Join(dir, "pennypost.toml"), Spool: filepath.Join(dir, "spool"),
		Maildirs: filepath.Join(dir, "mail"), Socket: filepath.Join(dir, "submit"),
		o: o, procs: map[string]*exec.Cmd{},
	}
	for _, step := range []func() error{in.writeCert, in.writeFiles, in.bind, func() error { return spool.Init(in.Spool) }} {
		if err := step(); err != nil {
			in.Close()
			return nil, fmt.Errorf("instance: %w", err)
		}
	}
	return in, nil
}

func (in *Instance) writeFiles() error {
	var users, secrets, quoted []string
	for _, d := range in.o.Domains {
		quoted = append(quoted, strconv.Quote(d))
		for _, u := range in.o.Users {
			users = append(users, u+"@"+d+"::::::\n")
			secrets = append(secrets, u+"@"+d+":{PLAIN}secret\n")
		}
	}
	config := fmt.Sprintf(`hostname = "mx.%s"
domains = [%s]
spool = "spool"
maildirs = "mail/%%d/%%u"
log = "file:log"
submit.socket = "submit"
submit.from = "%[1]s"
smtpd.idle = "1h"
limits.free_space = 0
limits.free_inodes = 0
tls.cert = "cert.pem"
tls.key = "key.pem"
tls.ca = "cert.pem"
%[3]s
`, in.o.Domains[0], strings.Join(quoted, ", "), in.o.Extra)
	for _, f := range []struct {
		name, text string
		mode       os.FileMode
	}{
		{"pennypost.toml", config, 0o644},
		{"users", strings.Join(users, ""), 0o644},
		{"secrets", strings.Join(secrets, ""), 0o600},
		{"aliases", "postmaster: " + in.o.Users[0] + "@" + in.o.Domains[0] + "\n", 0o644},
	} {
		if err := os.WriteFile(filepath.Join(in.Dir, f.name), []byte(f.text), f.mode); err != nil {
			return err
		}
	}
	return os.MkdirAll(in.Maildirs, 0o700)
}

// writeCert makes a key and a certificate that vouches for itself.
func (in *Instance) writeCert() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	names := []string{"localhost"}
	for _, d := range in.o.Domains {
		names = append(names, d, "mx."+d)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(in.Dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644),
		os.WriteFile(filepath.Join(in.Dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

// bind reserves the ports. They refuse connections until msmtpd is started for the first time;
// from then on connections wait while it is down.
func (in *Instance) bind() error {
	for _, l := range []struct {
		role string
		addr *string
	}{{"mx", &in.MX}, {"submission", &in.Submission}, {"submissions", &in.Submissions}} {
		port, err := in.bindOne(l.role, unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		if err != nil {
			return err
		}
		*l.addr = "127.0.0.1:" + strconv.Itoa(port)
	}
	_, err := in.bindOne("local", unix.AF_UNIX, &unix.SockaddrUnix{Name: in.Socket})
	return err
}

func (in *Instance) bindOne(role string, family int, addr unix.Sockaddr) (port int, err error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	unix.CloseOnExec(fd)
	in.sockets = append(in.sockets, passedSocket{role, os.NewFile(uintptr(fd), role)})
	if err := unix.Bind(fd, addr); err != nil {
		return 0, err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	if a, ok := name.(*unix.SockaddrInet4); ok {
		port = a.Port
	}
	return port, nil
}

// listen lets the sockets take connections; doing it again changes nothing.
func (in *Instance) listen() error {
	for _, s := range in.sockets {
		if err := unix.Listen(int(s.file.Fd()), 128); err != nil {
			return err
		}
	}
	return nil
}

// Environ are the variables by which scripts find the instance.
func (in *Instance) Environ() []string {
	port := func(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
	return []string{
		"PENNYPOST_CONFIG=" + in.Config, "PP_CONFIG=" + in.Config, "PP_DIR=" + in.Dir, "PP_SPOOL=" + in.Spool,
		"PP_MAILDIRS=" + in.Maildirs, "PP_HOST=127.0.0.1", "PP_MX=" + in.MX, "PP_SMTP_PORT=" + port(in.MX),
		"PP_SUBMISSION_PORT=" + port(in.Submission), "PP_SUBMISSIONS_PORT=" + port(in.Submissions),
		"PP_SUBMIT_SOCKET=" + in.Socket, "PP_CA=" + filepath.Join(in.Dir, "cert.pem"),
	}
}

// Start starts "mqueue" or "msmtpd"; one that runs already is left alone.
func (in *Instance) Start(name string) error {
	if in.procs[name] != nil {
		return nil
	}
	var cmd *exec.Cmd
	switch name {
	case "mqueue":
		cmd = exec.Command(filepath.Join(in.o.Bin, name), "--config", in.Config, "run")
	case "msmtpd":
		// The shell's exec keeps its pid, which LISTEN_PID must name.
		cmd = exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", filepath.Join(in.o.Bin, name), "--config", in.Config)
	default:
		return fmt.Errorf("instance has no %q", name)
	}
	cmd.Env = in.o.Env
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	if name == "msmtpd" {
		if err := in.listen(); err != nil {
			return err
		}
		var roles []string
		for _, l := range in.sockets {
			cmd.ExtraFiles = append(cmd.ExtraFiles, l.file)
			roles = append(roles, l.role)
		}
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(roles)), "LISTEN_FDNAMES="+strings.Join(roles, ":"))
	}
	errs, err := os.OpenFile(filepath.Join(in.Dir, "stderr"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer errs.Close()
	cmd.Stdout, cmd.Stderr = errs, errs
	cmd.Dir = in.Dir
	if err := cmd.Start(); err != nil {
		return err
	}
	in.procs[name] = cmd
	return nil
}

// Up starts everything.
func (in *Instance) Up() error { return errors.Join(in.Start("mqueue"), in.Start("msmtpd")) }

// Stop ends a process with the signal and waits for it; one that ignores it for thirty
// seconds is killed, and that is an error.
func (in *Instance) Stop(name string, sig os.Signal) error {
	cmd := in.procs[name]
	if cmd == nil {
		return nil
	}
	delete(in.procs, name)
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if sig != syscall.SIGTERM {
			return nil
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) && !exit.Exited() {
			return nil // it had no time yet to install its handler
		}
		if err != nil {
			return fmt.Errorf("%s after SIGTERM: %w", name, err)
		}
		return nil
	case <-time.After(30 * time.Second):
		err := cmd.Process.Kill()
		<-done
		return errors.Join(fmt.Errorf("%s ignores %v", name, sig), err)
	}
}

// Down ends everything and keeps the files.
func (in *Instance) Down() error {
	return errors.Join(in.Stop("msmtpd", syscall.SIGTERM), in.Stop("mqueue", syscall.SIGTERM))
}

// Close ends everything and removes the files.
func (in *Instance) Close() error {
	err := in.Down()
	for _, l := range in.sockets {
		l.file.Close()
	}
	return errors.Join(err, os.RemoveAll(in.Dir))
}

// Log is what the processes have logged and complained about, for messages of failed tests.
func (in *Instance) Log() string {
	var b strings.Builder
	for _, name := range []string{"log", "stderr"} {
		data, err := os.ReadFile(filepath.Join(in.Dir, name))
		if err == nil && len(data) > 0 {
			fmt.Fprintf(&b, "-- %s of %s --\n%s", name, in.Dir, data)
		}
	}
	return b.String()
}

// Mail returns the files of all messages in the Maildir of an address, oldest first.
func (in *Instance) Mail(addr string) ([]string, error) {
	user, domain, _ := strings.Cut(addr, "@")
	var files []string
	for _, d := range []string{"new", "cur"} {
		found, err := filepath.Glob(filepath.Join(in.Maildirs, domain, user, d, "*"))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	return files, nil
}

// Wait polls until ok or the time is over; it tells which. It looks often at first, and then
// four times a second.
func Wait(limit time.Duration, ok func() bool) bool {
	pause := 5 * time.Millisecond
	for end := time.Now().Add(limit); ; time.Sleep(pause) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		pause = min(pause*5/4, 250*time.Millisecond)
	}
}
