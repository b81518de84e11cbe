package auth

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"pennypost/internal/sasl"
)

// maxLine bounds a line of mauth(7): a password of 1024 octets, escaped, is the longest part.
const maxLine = 16 << 10

// writeTime is how long the other end may take to read a line.
const writeTime = 10 * time.Second

// The words of "op".
const (
	opPassword   = "password"
	opSCRAM      = "scram"
	opResponse   = "response"
	opMechanisms = "mechanisms"
	opRedeem     = "redeem"
)

// request is a line from the client.
type request struct {
	Op        string       `json:"op"`
	Login     string       `json:"login,omitempty"`
	Password  string       `json:"password,omitempty"`
	From      string       `json:"from,omitempty"`
	Mechanism string       `json:"mechanism,omitempty"`
	Binding   *wireBinding `json:"binding,omitempty"`
	Response  []byte       `json:"response,omitempty"`
	WantTick  bool         `json:"want_ticket,omitempty"`
	Ticket    string       `json:"ticket,omitempty"`
}

type wireBinding struct {
	Type string `json:"type"`
	Data []byte `json:"data"`
}

// reply is a line from the service.
type reply struct {
	OK         bool     `json:"ok,omitempty"`
	User       string   `json:"user,omitempty"`
	Ticket     string   `json:"ticket,omitempty"`
	Challenge  []byte   `json:"challenge,omitempty"`
	Mechanisms []string `json:"mechanisms,omitempty"`
	Error      string   `json:"error,omitempty"`
	Text       string   `json:"text,omitempty"`
}

// The words of "error".
const (
	errRefused   = "refused"
	errSyntax    = "syntax"
	errSlow      = "slow"
	errBusy      = "busy"
	errTemporary = "temporary"
)

// parseRequest reads a line.
func parseRequest(line []byte) (r request, from netip.Addr, err error) {
	if err = json.Unmarshal(line, &r); err != nil {
		return r, from, errors.New("not a JSON object of mauth(7)")
	}
	if r.From != "" {
		if from, err = netip.ParseAddr(r.From); err != nil {
			return r, from, errors.New("from is no IP address")
		}
	}
	switch r.Op {
	case opPassword, opSCRAM, opResponse, opMechanisms, opRedeem:
		return r, from, nil
	}
	return r, from, fmt.Errorf("unknown op %q", r.Op)
}

// failure is the reply to an error.
func failure(err error) reply {
	switch {
	case errors.Is(err, sasl.ErrRefused):
		return reply{Error: errRefused}
	case errors.Is(err, sasl.ErrSyntax):
		return reply{Error: errSyntax}
	case errors.Is(err, ErrSlow):
		return reply{Error: errSlow}
	case errors.Is(err, ErrBusy):
		return reply{Error: errBusy}
	}
	return reply{Error: errTemporary, Text: err.Error()}
}

// err is the error a reply stands for, nil when it stands for none.
func (r reply) err() error {
	switch r.Error {
	case "":
		return nil
	case errRefused:
		return sasl.ErrRefused
	case errSyntax:
		return sasl.ErrSyntax
	case errSlow:
		return sasl.Temporary(ErrSlow)
	case errBusy:
		return sasl.Temporary(ErrBusy)
	}
	return sasl.Temporary(fmt.Errorf("password service: %q", r.Text))
}

// line is one end of a connection.
type line struct {
	c net.Conn
	r *bufio.Reader
}

func newLine(c net.Conn) *line { return &line{c: c, r: bufio.NewReaderSize(c, maxLine)} }

// read returns one line without its end; it is good until the next call.
func (l *line) read() ([]byte, error) {
	b, err := l.r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b[:len(b)-1], []byte("\r")), nil
}

func (l *line) write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := l.c.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	_, err = l.c.Write(append(b, '\n'))
	return err
}
