package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"

	"pennypost/internal/envelope"
)

// Line 1 of a message file: "pennypost-spool 1 EEEEEEEEEE MMMMMMMMMMMMMMMMMMM CCCCCCCC\n".
// Its width is fixed so that it can be written last, in place.
const (
	formatWord    = "pennypost-spool"
	formatVersion = 1
	headerLen     = len(formatWord) + 1 + 1 + 1 + 10 + 1 + 19 + 1 + 8 + 1

	// maxEnvelope bounds what a reader takes into memory before it knows whom it reads.
	// 100,000 recipients with DSN parameters fit.
	maxEnvelope = 16 << 20
)

var (
	// ErrUnfinished says that a message file is still being written, or was never finished.
	ErrUnfinished = errors.New("unfinished message file")
	// ErrCorrupt says that a file of the spool is not what its writer wrote.
	ErrCorrupt = errors.New("corrupt")
	// ErrNewerFormat says that a newer release wrote the file. It is left alone.
	ErrNewerFormat = errors.New("written in a newer format; this release leaves it alone")
)

// header is line 1, decoded.
type header struct {
	envelope int64 // octets of line 2 with its LF
	message  int64 // octets of the message
	crc      uint32
}

// unfinished is line 1 while the rest is being written.
var unfinished = header{}.String()

func (h header) String() string {
	return fmt.Sprintf("%s %d %010d %019d %08x\n", formatWord, formatVersion, h.envelope, h.message, h.crc)
}

// parseHeader reads line 1. b may hold more.
func parseHeader(b []byte) (header, error) {
	if len(b) < len(formatWord)+2 {
		return header{}, ErrUnfinished
	}
	if string(b[:len(formatWord)+1]) != formatWord+" " {
		return header{}, fmt.Errorf("%w: line 1 does not begin with %s", ErrCorrupt, formatWord)
	}
	if v, n := leadingInt(b[len(formatWord)+1:]); n > 0 && v > formatVersion {
		return header{}, ErrNewerFormat
	}
	if len(b) < headerLen {
		return header{}, ErrUnfinished
	}
	line := b[:headerLen]
	if string(line) == unfinished {
		return header{}, ErrUnfinished
	}
	bad := fmt.Errorf("%w: line 1 is malformed", ErrCorrupt)
	at := len(formatWord) + 3
	e, err1 := strconv.ParseInt(string(line[at:at+10]), 10, 64)
	m, err2 := strconv.ParseInt(string(line[at+11:at+30]), 10, 64)
	c, err3 := strconv.ParseUint(string(line[at+31:at+39]), 16, 32)
	h := header{envelope: e, message: m, crc: uint32(c)}
	if err1 != nil || err2 != nil || err3 != nil || h.String() != string(line) {
		return header{}, bad
	}
	if e < 2 || e > maxEnvelope || m < 0 {
		return header{}, bad
	}
	return h, nil
}

// leadingInt reads decimal digits, at most nine, and returns how many there were.
func leadingInt(b []byte) (v, n int) {
	for n < len(b) && n < 9 && b[n] >= '0' && b[n] <= '9' {
		v = v*10 + int(b[n]-'0')
		n++
	}
	return v, n
}

func checksum(crc uint32, b []byte) uint32 {
	return crc32.Update(crc, crc32.MakeTable(crc32.Castagnoli), b)
}

// encodeEnvelope returns line 2.
func encodeEnvelope(e *envelope.Envelope) ([]byte, error) {
	b, err := jsonLine(e)
	if err == nil && len(b) > maxEnvelope {
		return nil, fmt.Errorf("envelope of %d octets is over %d", len(b), maxEnvelope)
	}
	return b, err
}

// jsonLine encodes v as one line, with < and > as they are: people read these files.
func jsonLine(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

// decodeEnvelope reads line 2 of the file named id.
func decodeEnvelope(id string, b []byte) (*envelope.Envelope, error) {
	if len(b) == 0 || b[len(b)-1] != '\n' {
		return nil, fmt.Errorf("%w: line 2 does not end where line 1 says", ErrCorrupt)
	}
	var e envelope.Envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("%w: envelope: %v", ErrCorrupt, err)
	}
	if e.ID != id {
		return nil, fmt.Errorf("%w: the envelope says id %q", ErrCorrupt, e.ID)
	}
	if len(e.To) == 0 {
		return nil, fmt.Errorf("%w: no recipient", ErrCorrupt)
	}
	if e.EOL != envelope.EOLLF && e.EOL != envelope.EOLWire {
		return nil, fmt.Errorf("%w: eol %q", ErrCorrupt, e.EOL)
	}
	return &e, nil
}
