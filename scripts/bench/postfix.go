package main

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

// postfixMissing says why there is no Postfix to compare with; "" where there is.
func postfixMissing() string {
	switch {
	case os.Geteuid() != 0:
		return "Postfix needs root"
	case !have("postfix") || !have("smtp-source"):
		return "Postfix is not installed"
	}
	return ""
}

const postfixConf = `compatibility_level = 3.6
queue_directory = %[1]s/spool
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.example.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
virtual_mailbox_domains = example.test
virtual_mailbox_base = %[1]s/mail
virtual_mailbox_maps = inline:{ alice@example.test=alice/ }
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
virtual_mailbox_limit = 0
transport_maps = inline:{ sink.test=smtp:[127.0.0.1]:%[2]d, .sink.test=smtp:[127.0.0.1]:%[2]d }
maillog_file = %[1]s/log
maillog_file_prefixes = %[1]s
smtpd_client_connection_count_limit = 0
multi_instance_enable = yes
multi_instance_name = postfix-bench
`

// startPostfix runs Postfix as the distribution sets it up, with a private queue and
// configuration; mailboxes are virtual ones, as ours are.
func (b *bench) startPostfix() (*peer, error) {
	dir := filepath.Join(b.dir, "postfix")
	conf := filepath.Join(dir, "etc")
	for _, d := range []string{conf, dir + "/spool", dir + "/data", dir + "/mail"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	master, err := os.ReadFile("/usr/share/postfix/master.cf.dist")
	if err != nil {
		return nil, fmt.Errorf("no master.cf to start from: %w", err)
	}
	text := strings.Replace(string(master), "\nsmtp      inet", "\n"+strconv.Itoa(port)+"      inet", 1)
	for _, e := range []error{
		os.WriteFile(conf+"/master.cf", []byte(text), 0o644),
		os.WriteFile(conf+"/main.cf", fmt.Appendf(nil, postfixConf, dir, b.sink), 0o644),
		shell("chown postfix " + dir + "/data && chown 65534:65534 " + dir + "/mail"),
		shell("postfix -c " + conf + " set-permissions >/dev/null 2>&1; postfix -c " + conf + " start"),
	} {
		if e != nil {
			return nil, e
		}
	}
	p := &peer{
		name: "postfix", addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		maildir:  dir + "/mail/alice/new",
		sendmail: []string{"/usr/sbin/sendmail", "-C", conf},
		env:      os.Environ(),
		pids: func() []int {
			return withChildren(readPids(dir + "/spool/pid/master.pid"))
		},
		stop: func() error { return shell("postfix -c " + conf + " stop") },
	}
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", p.addr)
		if err == nil {
			return p, c.Close()
		}
		if time.Since(begin) > 10*time.Second {
			return nil, errors.Join(err, p.stop())
		}
	}
}

func shell(command string) error {
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}
