package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// toolCases are the programs people run. Exit 0 is their promise, and 250 that of msmtpd.
func toolCases(p *programs, inSpool, inMaildir func(testcase)) {
	msend := []string{"msend", "-f", "alice@example.test", "bob@example.test"}
	mdeliver := []string{"mdeliver", "-f", "alice@example.test", "--maildir", "%d"}
	if p.have["msend"] {
		inSpool(testcase{name: "msend", fs: "ext4", run: p.tool(p.bin, msend...)})
		inSpool(testcase{name: "msend", fs: "xfs", run: p.tool(p.bin, msend...)})
		inSpool(testcase{name: "msend without file sync", fs: "ext4", run: p.tool(p.mutants[noFileSync], msend...), loss: true})
	}
	if p.have["mdeliver"] {
		inMaildir(testcase{name: "mdeliver", fs: "ext4", run: p.tool(p.bin, mdeliver...)})
		inMaildir(testcase{name: "mdeliver", fs: "xfs", run: p.tool(p.bin, mdeliver...)})
		inMaildir(testcase{name: "mdeliver without file sync", fs: "ext4", run: p.tool(p.mutants[noFileSync], mdeliver...), loss: true})
		inMaildir(testcase{name: "mdeliver without dir sync", fs: "ext4", run: p.tool(p.mutants[noDirSync], mdeliver...)})
	}
	if p.have["msmtpd"] {
		inSpool(testcase{name: "msmtpd", fs: "ext4", run: p.session(p.bin)})
		inSpool(testcase{name: "msmtpd", fs: "xfs", run: p.session(p.bin)})
		inSpool(testcase{name: "msmtpd without file sync", fs: "ext4", run: p.session(p.mutants[noFileSync]), loss: true})
	}
}

// config writes a configuration whose spool, or Maildir, is dir.
func (p *programs) config(dir string) (string, error) {
	work := filepath.Dir(p.bin)
	config, users := filepath.Join(work, "pennypost.toml"), filepath.Join(work, "users")
	text := fmt.Sprintf("hostname = %q\ndomains = [\"example.test\"]\nspool = %q\nmaildirs = %q\n[limits]\nfree_space = 1\n[accounts]\nusers = %q\n",
		"mx.example.test", dir, filepath.Join(work, "%d", "%u"), users)
	return config, errors.Join(
		os.WriteFile(users, []byte("bob@example.test::::::\n"), 0o644),
		os.WriteFile(config, []byte(text), 0o644))
}

// tool runs one of our programs again and again, with a message on its standard input.
func (p *programs) tool(bin string, argv ...string) runner {
	return func(ctx context.Context, c *testcase, dir string, ack func(token string)) error {
		config, err := p.config(dir)
		if err != nil {
			return err
		}
		args := []string{"--config", config}
		for _, a := range argv[1:] {
			args = append(args, strings.ReplaceAll(a, "%d", dir))
		}
		end := time.Now().Add(c.time)
		for i := 0; time.Now().Before(end); i++ {
			token := fmt.Sprintf("%s-%d", argv[0], i)
			cmd := exec.CommandContext(ctx, filepath.Join(bin, argv[0]), args...)
			cmd.Stdin = bytes.NewReader(message(token))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", argv[0], err, out)
			}
			ack(token)
		}
		return nil
	}
}

// session sends messages to msmtpd on its standard input and output, as inetd would start it.
func (p *programs) session(bin string) runner {
	return func(ctx context.Context, c *testcase, dir string, ack func(token string)) error {
		config, err := p.config(dir)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "msmtpd"), "--config", config, "--role", "mx")
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			return err
		}
		d := dialogue{w: in, r: bufio.NewReader(out)}
		d.say("", "220")
		d.say("EHLO powercut.example.test\r\n", "250")
		end := time.Now().Add(c.time)
		for i := 0; time.Now().Before(end) && d.err == nil; i++ {
			token := fmt.Sprintf("msmtpd-%d", i)
			d.say("MAIL FROM:<alice@elsewhere.test>\r\n", "250")
			d.say("RCPT TO:<bob@example.test>\r\n", "250")
			d.say("DATA\r\n", "354")
			text := bytes.ReplaceAll(message(token), []byte("\n"), []byte("\r\n"))
			if d.say(string(text)+".\r\n", "250"); d.err == nil {
				ack(token)
			}
		}
		d.say("QUIT\r\n", "221")
		return errors.Join(d.err, in.Close(), cmd.Wait())
	}
}

// dialogue is a conversation in lock step; after the first surprise it says no more.
type dialogue struct {
	w   io.Writer
	r   *bufio.Reader
	err error
}

func (d *dialogue) say(text, want string) {
	if d.err != nil {
		return
	}
	if _, d.err = io.WriteString(d.w, text); d.err != nil {
		return
	}
	for {
		line, err := d.r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, want) {
			d.err = fmt.Errorf("msmtpd said %q, not %s: %w", line, want, errors.Join(err, errSurprise))
			return
		}
		if len(line) > 3 && line[3] == ' ' {
			return
		}
	}
}

var errSurprise = errors.New("an answer we did not expect")
