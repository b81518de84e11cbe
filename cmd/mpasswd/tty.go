package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"pennypost/internal/cli"
	"pennypost/internal/envelope"
	"pennypost/internal/password"
)

// readPassword reads one line from standard input: without echo, and twice when it is a new
// password, where a person types it.
func readPassword(isNew bool) (string, error) {
	if _, err := unix.IoctlGetTermios(0, getTermios); err != nil {
		s, err := readLine()
		if err != nil {
			return "", cli.Exit(envelope.ExIOErr, fmt.Errorf("standard input: %w", err))
		}
		return checkLine(s)
	}
	pw, err := ask("Password: ")
	if err != nil || !isNew {
		return pw, err
	}
	again, err := ask("Again: ")
	if err == nil && again != pw {
		err = cli.Exit(envelope.ExDataErr, errors.New("the two passwords differ"))
	}
	return pw, err
}

// ask reads a line from the terminal with its echo off, and turns it on again whatever happens.
func ask(prompt string) (string, error) {
	old, err := unix.IoctlGetTermios(0, getTermios)
	if err != nil {
		return "", err
	}
	quiet := *old
	quiet.Lflag &^= unix.ECHO
	restore := func() { _ = unix.IoctlSetTermios(0, setTermios, old) }
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(sig)
	if err := unix.IoctlSetTermios(0, setTermios, &quiet); err != nil {
		return "", err
	}
	defer restore()
	fmt.Fprint(os.Stderr, prompt)
	type answer struct {
		s   string
		err error
	}
	got := make(chan answer, 1)
	go func() {
		s, err := readLine()
		got <- answer{s, err}
	}()
	select {
	case a := <-got:
		fmt.Fprintln(os.Stderr)
		if a.err != nil {
			return "", a.err
		}
		return checkLine(a.s)
	case <-sig:
		fmt.Fprintln(os.Stderr)
		return "", cli.Exit(envelope.ExTempFail, errors.New("interrupted"))
	}
}

// readLine reads to the end of the line octet by octet: what follows on standard input is not ours.
func readLine() (string, error) {
	var b []byte
	c := make([]byte, 1)
	for len(b) <= password.MaxLength+2 {
		n, err := os.Stdin.Read(c)
		if n > 0 {
			if b = append(b, c[0]); c[0] == '\n' {
				break
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
	}
	return string(b), nil
}
