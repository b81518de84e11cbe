package mailtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Nobody is the user of mail in tests that share a Maildir with Dovecot, which serves root no mail.
const Nobody = 65534

// DovecotMissing says why no private Dovecot can be started here; "" where one can.
func DovecotMissing() string {
	if os.Geteuid() != 0 {
		return "Dovecot needs root"
	}
	for _, p := range []string{"/usr/sbin/dovecot", "/usr/lib/dovecot/imap", "/usr/lib/dovecot/pop3"} {
		if _, err := os.Stat(p); err != nil {
			return "Dovecot is not installed with IMAP and POP3"
		}
	}
	return ""
}

// DovecotOptions say what a private Dovecot serves: one Maildir of the user Nobody, to whoever
// logs in with the password "secret".
type DovecotOptions struct {
	Dir     string // for what it writes, below directories that everybody may enter
	Maildir string // location, with options behind a colon
	More    string // further lines of the configuration
}

// DovecotServer runs beside whatever the host runs.
type DovecotServer struct {
	IMAP, POP3 string // host:port
	dir        string
	cmd        *exec.Cmd
	done       chan error
}

const dovecotConf = `base_dir = %[1]s/run
state_dir = %[1]s/run
log_path = %[1]s/log
protocols = imap pop3
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:%[2]s
first_valid_uid = 1
first_valid_gid = 1
passdb {
 driver = static
 args = password=secret
}
userdb {
 driver = static
 args = uid=%[5]d gid=%[5]d home=%[1]s/home
}
namespace inbox {
 inbox = yes
}
service imap-login {
 inet_listener imap {
  port = %[3]d
 }
 inet_listener imaps {
  port = 0
 }
}
service pop3-login {
 inet_listener pop3 {
  port = %[4]d
 }
 inet_listener pop3s {
  port = 0
 }
}
%[6]s
`

// StartDovecot starts one and waits until it serves.
func StartDovecot(o DovecotOptions) (*DovecotServer, error) {
	d := &DovecotServer{dir: o.Dir, done: make(chan error, 1)}
	for _, sub := range []string{"run", "home"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Chown(filepath.Join(o.Dir, "home"), Nobody, Nobody); err != nil {
		return nil, err
	}
	ports := [2]int{}
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	d.IMAP, d.POP3 = "127.0.0.1:"+strconv.Itoa(ports[0]), "127.0.0.1:"+strconv.Itoa(ports[1])
	conf := filepath.Join(o.Dir, "dovecot.conf")
	text := fmt.Sprintf(dovecotConf, o.Dir, o.Maildir, ports[0], ports[1], Nobody, o.More)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	d.cmd = exec.Command("/usr/sbin/dovecot", "-F", "-c", conf)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { d.done <- d.cmd.Wait() }()
	if !Wait(10*time.Second, d.serves) {
		log, _ := os.ReadFile(filepath.Join(o.Dir, "log")) // for the message
		return nil, fmt.Errorf("Dovecot does not come up (%v)\n%s", d.Stop(), log)
	}
	return d, nil
}

func (d *DovecotServer) serves() bool {
	for _, addr := range []string{d.IMAP, d.POP3} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		err = c.SetDeadline(time.Now().Add(5 * time.Second))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		c.Close()
		if err != nil {
			return false
		}
	}
	return true
}

// Stop ends it and waits.
func (d *DovecotServer) Stop() error {
	if d.cmd == nil {
		return nil
	}
	err := d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL) // the error below tells
		<-d.done
		err = fmt.Errorf("Dovecot ignores SIGTERM (%v)", err)
	}
	d.cmd = nil
	return err
}
