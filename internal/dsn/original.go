package dsn

import (
	"bufio"
	"errors"
	"io"
	"strings"

	"pennypost/internal/envelope"
)

// layout is what a look at the original tells about the report to be written.
type layout struct {
	header    int64 // octets of the original's header that are returned
	full      bool  // return the whole message
	encode    bool  // the third part is quoted-printable
	global    bool  // RFC 6533 media types
	eightBit  bool  // the third part travels as 8bit
	messageID string
	subject   string
}

// maxHeader bounds the part of a header that is returned or looked at.
const maxHeader = 256 << 10

// maxLine is RFC 5322 §2.1.1's limit without the line end.
const maxLine = 998

// plan reads the original as far as it must: the header, and the body where that is returned.
func plan(r *Report) (layout, error) {
	l := layout{global: r.Env.SMTPUTF8}
	for _, rc := range r.Recipients {
		l.global = l.global || !isASCII(rc.Addr) || !isASCII(rc.ORcpt)
	}
	if r.Original == nil {
		return l, nil
	}
	limit := r.MaxFull
	if limit == 0 {
		limit = maxFull
	}
	// RFC 3461 §6.2: the whole message only for failures. Bytes "as received" (BINARYMIME) fit
	// into no message/rfc822, so of those the header goes back.
	l.full = r.Kind == Failure && strings.EqualFold(r.Env.Ret, "FULL") && !r.Env.RequireTLS && r.Original.Size() <= limit &&
		r.Env.EOL != envelope.EOLWire
	end := r.Original.Size()
	s := scanner{r: bufio.NewReaderSize(io.NewSectionReader(r.Original, 0, end), 32<<10)}
	if err := s.header(&l); err != nil {
		return l, err
	}
	l.header = s.headerEnd
	if l.full {
		if err := s.rest(); err != nil {
			return l, err
		}
	}
	odd := s.eightBit || s.control || s.longLine
	switch {
	case !odd:
	case l.full && !l.global:
		// RFC 2046 §5.2.1: message/rfc822 allows no encoding but 7bit, 8bit and binary.
		l.eightBit = s.eightBit
	default:
		l.encode = true
	}
	return l, nil
}

// scanner walks over the original and remembers what is unusual about its octets.
type scanner struct {
	r         *bufio.Reader
	pos       int64
	headerEnd int64
	line      int // octets of the current line so far
	eightBit  bool
	control   bool // CR or NUL
	longLine  bool
}

// header reads up to the empty line and picks the fields a report quotes.
func (s *scanner) header(l *layout) error {
	field := ""
	for s.pos < maxHeader {
		line, err := s.readLine()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		text := strings.TrimRight(line, "\r\n")
		if text == "" {
			break
		}
		if text[0] != ' ' && text[0] != '\t' {
			l.take(field)
			field = ""
		}
		if len(field) < 4096 {
			field += text
		}
		s.headerEnd = s.pos
		if err != nil {
			break
		}
	}
	l.take(field)
	return nil
}

// take keeps the unfolded field if the report quotes it. The first of a name counts.
func (l *layout) take(field string) {
	name, value, ok := strings.Cut(field, ":")
	if !ok {
		return
	}
	value = strings.TrimSpace(value)
	switch strings.ToLower(strings.TrimSpace(name)) {
	case "message-id":
		if l.messageID == "" && goodMessageID(value) {
			l.messageID = value
		}
	case "subject":
		if l.subject == "" {
			l.subject = value
		}
	}
}

// goodMessageID tells whether a foreign Message-ID can be copied into our header as it is.
func goodMessageID(s string) bool {
	if len(s) < 3 || len(s) > 250 || s[0] != '<' || s[len(s)-1] != '>' {
		return false
	}
	for i := 1; i < len(s)-1; i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '<' || c == '>' {
			return false
		}
	}
	return true
}

// readLine returns one line with its end, at most a buffer's worth at a time.
func (s *scanner) readLine() (string, error) {
	b, err := s.r.ReadSlice('\n')
	s.look(b)
	if errors.Is(err, bufio.ErrBufferFull) {
		err = nil
	}
	return string(b), err
}

func (s *scanner) rest() error {
	for {
		b, err := s.r.ReadSlice('\n')
		s.look(b)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

func (s *scanner) look(b []byte) {
	s.pos += int64(len(b))
	for _, c := range b {
		switch {
		case c == '\n':
			s.line = 0
			continue
		case c >= 0x80:
			s.eightBit = true
		case c == '\r' || c == 0:
			s.control = true
		}
		if s.line++; s.line > maxLine {
			s.longLine = true
		}
	}
}
