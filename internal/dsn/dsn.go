// Package dsn writes and reads delivery status notifications: RFC 3464 in the multipart/report
// of RFC 6522, with the UTF-8 forms of RFC 6533. It hides which recipients are owed a report,
// how a status reads in plain words, and how the original travels back without ever needing an
// ability (8BITMIME, SMTPUTF8) that the way back may lack.
package dsn

import (
	"io"
	"strings"
	"time"

	"pennypost/internal/envelope"
)

// Kind says what a report is about.
type Kind string

// The kinds of reports.
const (
	Failure Kind = "failure"
	Delay   Kind = "delay"
	Success Kind = "success"
)

// Values of RFC 3461 §4.1's NOTIFY.
const (
	notifyNever   = "NEVER"
	notifySuccess = "SUCCESS"
	notifyFailure = "FAILURE"
	notifyDelay   = "DELAY"
)

// Recipient is one recipient of the original message with what became of it.
type Recipient struct {
	envelope.Recipient
	envelope.Status
	Last       time.Time // last attempt; zero: none was made
	RetryUntil time.Time // of a delay: when it will be given up
	Relayed    bool      // the next hop took over the duty to report (it announced DSN)
	Told       bool      // of a relayed one: reported whether or not SUCCESS was asked for (RFC 2852 §4.1.4)
}

// Report is all that a notification is made from.
type Report struct {
	ID         string             // queue id of the report; its Message-ID and part boundary derive from it
	Kind       Kind               //
	Env        *envelope.Envelope // of the original
	Round      int                // round of the original that the report is about
	Recipients []Recipient        // those to report, as Due selects them
	Hostname   string             // reporting MTA
	Postmaster string             // whom to ask; "" leaves the sentence out
	Now        time.Time          //
	Original   *io.SectionReader  // the original message; nil when it is not at hand
	MaxFull    int64              // RET=FULL returns the whole message up to this size; 0: 1 MiB
}

// maxFull bounds a returned message: RFC 3461 §6.2 allows a bound, and an unbounded one would
// let a stranger with a forged reverse-path have large mail sent to others by us.
const maxFull = 1 << 20

// Due returns the recipients of rs that a report of this kind must name; empty means that no
// report is due. Nothing is ever due for the null reverse-path (RFC 5321 §4.5.5, §6.1): a
// report about a report would go round for ever.
func Due(env *envelope.Envelope, kind Kind, rs []Recipient) []Recipient {
	if env.From == "" {
		return nil
	}
	var due []Recipient
	for _, r := range rs {
		if due1(kind, r) {
			due = append(due, r)
		}
	}
	return due
}

func due1(kind Kind, r Recipient) bool {
	switch kind {
	case Failure:
		// A deferral in a failure report is one that was given up.
		if r.Verdict != envelope.Failed && r.Verdict != envelope.Deferred {
			return false
		}
		// RFC 3461 §4.1: without NOTIFY, failures are reported, and delays may be.
		return len(r.Notify) == 0 || wants(r, notifyFailure)
	case Delay:
		return r.Verdict == envelope.Deferred && (len(r.Notify) == 0 || wants(r, notifyDelay))
	case Success:
		switch r.Verdict {
		case envelope.Delivered:
			return wants(r, notifySuccess)
		case envelope.Expanded:
			// RFC 3461 §5.2.7.2: an alias with one target passes SUCCESS on, and no report is due.
			return !r.Relayed && wants(r, notifySuccess)
		case envelope.Relayed:
			// RFC 3461 §5.2.2: the last host that knows DSN says "relayed".
			return r.Told || !r.Relayed && wants(r, notifySuccess)
		}
	}
	return false
}

// Never tells whether NOTIFY=NEVER was said.
func Never(notify []string) bool {
	for _, n := range notify {
		if strings.EqualFold(n, notifyNever) {
			return true
		}
	}
	return false
}

func wants(r Recipient, word string) bool {
	found := false
	for _, n := range r.Notify {
		if strings.EqualFold(n, notifyNever) {
			return false
		}
		found = found || strings.EqualFold(n, word)
	}
	return found
}

// Child returns the envelope with which the report travels: from the null reverse-path to the
// reverse-path of the original. It reads the original once to learn whether the report holds
// 8-bit lines.
func Child(r *Report) (*envelope.Envelope, error) {
	p, err := plan(r)
	if err != nil {
		return nil, err
	}
	env := &envelope.Envelope{
		ID: r.ID, Time: r.Now.UTC(), EOL: envelope.EOLLF,
		// RFC 3461 §6.1: the only NOTIFY a report may carry is NEVER.
		To:       []envelope.Recipient{{Addr: r.Env.From, Notify: []string{notifyNever}}},
		SMTPUTF8: !isASCII(r.Env.From),
		// RFC 8689 §5: a report is protected as its message is; RFC 6710 §4.6: and as urgent.
		RequireTLS: r.Env.RequireTLS, Priority: r.Env.Priority,
		Origin: envelope.Origin{Kind: envelope.OriginDSN, Parent: r.Env.ID, Round: r.Round, MsgID: messageID(r)},
	}
	if p.eightBit {
		env.Body = envelope.Body8Bit
	}
	return env, nil
}

// action is the Action field, RFC 3464 §2.3.3.
func action(kind Kind, v envelope.Verdict) string {
	switch {
	case kind == Failure:
		return "failed"
	case kind == Delay:
		return "delayed"
	}
	return string(v)
}

func messageID(r *Report) string { return "<" + r.ID + "@" + r.Hostname + ">" }

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
