package envelope

import "strconv"

// Verdict is the outcome of one attempt for one recipient.
type Verdict string

// The verdicts; the words stand in logs, reports and JSON exactly so.
const (
	Delivered Verdict = "delivered" // in a mailbox, durable
	Relayed   Verdict = "relayed"   // the next hop answered for it
	Expanded  Verdict = "expanded"  // replaced by other recipients (alias, forward)
	Deferred  Verdict = "deferred"  // try again later
	Failed    Verdict = "failed"    // will never work; a DSN is due
)

// Done tells whether the recipient needs no further attempt.
func (v Verdict) Done() bool { return v == Delivered || v == Relayed || v == Expanded || v == Failed }

// Status is the result for one recipient. It is made where the cause is known and travels
// unchanged into the log, the spool and the DSN.
type Status struct {
	Verdict Verdict `json:"status"`
	Code    string  `json:"dsn"`              // enhanced status code, RFC 3463: "5.1.1"
	Reply   string  `json:"reply,omitempty"`  // one line for people: the remote reply or our own sentence
	Relay   string  `json:"relay,omitempty"`  // next hop as host[addr]:port, when there was one
	Remote  bool    `json:"remote,omitempty"` // Reply was said by the remote side (a DSN names it as Diagnostic-Code: smtp)
}

// Failf-like constructors keep call sites to one line.

// Fail returns a failed status. code is an enhanced code of class 5.
func Fail(code, reply string) Status { return Status{Verdict: Failed, Code: code, Reply: reply} }

// Defer returns a deferred status. code is an enhanced code of class 4.
func Defer(code, reply string) Status { return Status{Verdict: Deferred, Code: code, Reply: reply} }

// Exit statuses of sysexits.h, which all our tools use.
const (
	ExOK          = 0
	ExUsage       = 64
	ExDataErr     = 65
	ExNoInput     = 66
	ExNoUser      = 67
	ExNoHost      = 68
	ExUnavailable = 69
	ExSoftware    = 70
	ExOSErr       = 71
	ExOSFile      = 72
	ExCantCreat   = 73
	ExIOErr       = 74
	ExTempFail    = 75
	ExProtocol    = 76
	ExNoPerm      = 77
	ExConfig      = 78
)

// FromExit turns the exit status of a delivery program into a Status. Any status not listed,
// and death by a signal (pass -1), is a deferral: unknown is never a bounce.
func FromExit(status int) Status {
	switch status {
	case ExOK:
		return Status{Verdict: Delivered, Code: "2.0.0"}
	case ExUsage, ExConfig:
		return Defer("4.3.5", "delivery program reports a usage or configuration error (exit status "+strconv.Itoa(status)+")")
	case ExDataErr:
		return Fail("5.6.0", "delivery program cannot parse the message or the address (exit status 65)")
	case ExNoUser:
		return Fail("5.1.1", "no such mailbox (exit status 67)")
	case ExNoHost:
		return Fail("5.1.2", "no such domain (exit status 68)")
	case ExUnavailable:
		return Fail("5.3.0", "delivery program refuses the message for good (exit status 69)")
	case ExNoPerm:
		return Fail("5.7.1", "refused by policy (exit status 77)")
	case -1:
		return Defer("4.3.0", "delivery program died by a signal")
	}
	return Defer("4.3.0", "delivery program failed for now (exit status "+strconv.Itoa(status)+")")
}

// ToExit is the exit status with which one of our tools reports s by hand.
func (s Status) ToExit() int {
	switch s.Verdict {
	case Delivered, Relayed, Expanded:
		return ExOK
	case Failed:
		switch s.Code {
		case "5.1.1", "5.1.3", "5.1.6", "5.2.1":
			return ExNoUser
		case "5.1.2", "5.1.10", "5.4.4":
			return ExNoHost
		case "5.6.0":
			return ExDataErr
		}
		if len(s.Code) > 4 && s.Code[:4] == "5.7." {
			return ExNoPerm
		}
		return ExUnavailable
	}
	return ExTempFail
}

// ValidCode tells whether s is an enhanced status code of RFC 3463 §2: class 2, 4 or 5,
// subject and detail of one to three digits without leading zeros.
func ValidCode(s string) bool {
	if len(s) < 5 || s[1] != '.' || s[0] != '2' && s[0] != '4' && s[0] != '5' {
		return false
	}
	field := 0
	digits := 0
	for i := 2; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= '0' && c <= '9':
			if digits == 1 && s[i-1] == '0' || digits == 3 {
				return false
			}
			digits++
		case c == '.' && digits > 0 && field == 0:
			field, digits = 1, 0
		default:
			return false
		}
	}
	return field == 1 && digits > 0
}
