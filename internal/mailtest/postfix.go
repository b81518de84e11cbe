package mailtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	postfixMaster = "/usr/share/postfix/master.cf.dist"
	postfixStart  = 10 * time.Second
)

// PostfixMissing says why no private Postfix can be started here; "" where one can.
func PostfixMissing() string {
	if os.Geteuid() != 0 {
		return "Postfix needs root"
	}
	for _, p := range []string{"postfix", "sendmail"} {
		if _, err := exec.LookPath(p); err != nil {
			if _, err := os.Stat("/usr/sbin/" + p); err != nil {
				return "Postfix is not installed"
			}
		}
	}
	if _, err := os.Stat(postfixMaster); err != nil {
		return "no master.cf to start a private Postfix from"
	}
	return ""
}

// PostfixOptions say what a private Postfix is for.
type PostfixOptions struct {
	Dir    string // below directories that everybody may enter
	Name   string // of the instance, in its log
	Port   int
	Domain string // its mailboxes are virtual, as ours are
	User   string
	More   string // further lines of main.cf
}

// Postfix runs as the distribution sets it up, with a queue, a configuration and mailboxes of its
// own, beside whatever the host runs.
type Postfix struct {
	Conf string // the directory for postfix -c and sendmail -C
	Addr string // where it takes mail
	Mail string // the new directory of the user's mailbox
	Pid  string // the file with the number of its first process
}

const postfixMain = `compatibility_level = 3.6
queue_directory = %[1]s/spool
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.%[2]s
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
virtual_mailbox_domains = %[2]s
virtual_mailbox_base = %[1]s/mail
virtual_mailbox_maps = inline:{ %[3]s@%[2]s=%[3]s/ }
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
maillog_file = %[1]s/log
maillog_file_prefixes = %[1]s
multi_instance_enable = yes
multi_instance_name = postfix-%[4]s
`

// StartPostfix starts one and waits until it takes connections. One that does not is stopped.
func StartPostfix(o PostfixOptions) (*Postfix, error) {
	p := &Postfix{
		Conf: filepath.Join(o.Dir, "etc"), Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Port)),
		Mail: filepath.Join(o.Dir, "mail", o.User, "new"), Pid: filepath.Join(o.Dir, "spool/pid/master.pid"),
	}
	for _, d := range []string{"etc", "spool", "data", "mail"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	master, err := os.ReadFile(postfixMaster)
	if err != nil {
		return nil, err
	}
	text := strings.Replace(string(master), "\nsmtp      inet", "\n"+strconv.Itoa(o.Port)+"      inet", 1)
	err = errors.Join(os.WriteFile(p.Conf+"/master.cf", []byte(text), 0o644),
		os.WriteFile(p.Conf+"/main.cf", fmt.Appendf(nil, postfixMain+"%[5]s", o.Dir, o.Domain, o.User, o.Name, o.More), 0o644),
		quiet("chown", "postfix", o.Dir+"/data"), quiet("chown", "65534:65534", o.Dir+"/mail"))
	if err != nil {
		return nil, err
	}
	_ = quiet("postfix", "-c", p.Conf, "set-permissions") // complains of other instances, which is no matter
	if err := quiet("postfix", "-c", p.Conf, "start"); err != nil {
		return nil, err
	}
	serves := func() bool {
		c, err := net.Dial("tcp", p.Addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if !Wait(postfixStart, serves) {
		return nil, errors.Join(fmt.Errorf("postfix does not serve %s", p.Addr), p.Stop())
	}
	return p, nil
}

// Stop ends it.
func (p *Postfix) Stop() error { return quiet("postfix", "-c", p.Conf, "stop") }

// quiet runs a program, whose output is shown only where it fails.
func quiet(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
