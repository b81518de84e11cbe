package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"pennypost/internal/cli"
	"pennypost/internal/envelope"
	"pennypost/internal/imapclient"
	"pennypost/internal/transfer"
)

// server logs in to the server that kind://user@host[:port] names.
func (j *job) server(kind, where string) (*transfer.IMAP, error) {
	u, err := url.Parse(kind + ":" + where)
	if err != nil || u.Host == "" || u.User == nil || u.Path != "" && u.Path != "/" {
		return nil, cli.Usage("%s:%s: want %s://USER@HOST or %s://USER@HOST:PORT", kind, where, kind, kind)
	}
	if _, ok := u.User.Password(); ok {
		return nil, cli.Usage("a password on the command line is seen by everybody on this host: use --password-file")
	}
	user := u.User.Username()
	o := imapclient.Options{Security: imapclient.Implicit, Insecure: cli.Bool(j.c, "insecure")}
	port := "993"
	if kind == "imap" {
		o.Security, port = imapclient.StartTLS, "143"
		if o.Insecure {
			o.Security = imapclient.Plain
		}
	}
	if u.Port() != "" {
		port = u.Port()
	}
	o.Addr = net.JoinHostPort(u.Hostname(), port)
	if o.TLS, err = trust(cli.String(j.c, "ca")); err != nil {
		return nil, err
	}
	var c *imapclient.Client
	if command := cli.String(j.c, "tunnel"); command != "" {
		c, err = j.tunnel(command, o)
	} else {
		c, err = imapclient.Dial(j.c.Context, o)
	}
	if err != nil {
		return nil, err
	}
	if !c.LoggedIn() {
		if err := j.login(c, user); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return &transfer.IMAP{Client: c, Name: user + "@" + u.Hostname()}, nil
}

func trust(file string) (*tls.Config, error) {
	if file == "" {
		return &tls.Config{}, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(b) {
		return nil, cli.Exit(envelope.ExDataErr, fmt.Errorf("%s: no certificate in it", file))
	}
	return &tls.Config{RootCAs: pool}, nil
}

func (j *job) login(c *imapclient.Client, user string) error {
	file := cli.String(j.c, "password-file")
	if file == "" {
		return cli.Usage("the server wants a password: --password-file FILE")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	password, _, _ := strings.Cut(string(b), "\n")
	err = c.Login(user, strings.TrimSuffix(password, "\r"), "")
	var refused *imapclient.Error
	if errors.As(err, &refused) && refused.Status == "NO" && !strings.EqualFold(refused.Code, "UNAVAILABLE") {
		return cli.Exit(envelope.ExNoPerm, err)
	}
	return err
}

// tunnel talks with a program: ssh to a host where one needs no password, say.
func (j *job) tunnel(command string, o imapclient.Options) (*imapclient.Client, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fds[0])
	syscall.CloseOnExec(fds[1])
	theirs, ours := os.NewFile(uintptr(fds[0]), "tunnel"), os.NewFile(uintptr(fds[1]), "tunnel")
	conn, err := net.FileConn(ours)
	err = errors.Join(err, ours.Close())
	if err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	cmd := exec.CommandContext(j.c.Context, "/bin/sh", "-c", command)
	cmd.Stdin, cmd.Stdout = theirs, theirs
	if _, ok := j.c.App.ErrWriter.(*os.File); ok {
		cmd.Stderr = os.Stderr
	} else {
		cmd.Stderr = io.Discard
	}
	err = cmd.Start()
	if err = errors.Join(err, theirs.Close()); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	o.Security, o.Insecure = imapclient.Plain, true // how it is protected is the program's business
	c, err := imapclient.Over(j.c.Context, child{conn, cmd}, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	return c, nil
}

// child is a connection to a program that ends with it.
type child struct {
	net.Conn
	cmd *exec.Cmd
}

func (c child) Close() error {
	err := c.Conn.Close()
	// Ignored: how it ends when nobody listens any more says nothing about the mail.
	_ = c.cmd.Wait()
	return err
}
