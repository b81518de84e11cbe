package imapwire

import (
	"io"
	"math"
)

// Classes of octets of RFC 9051 §9.
const (
	classAtom   = 1 << iota // ATOM-CHAR
	classAstr               // ASTRING-CHAR: ATOM-CHAR and "]"
	classTag                // ASTRING-CHAR without "+"
	classList               // list-char: ATOM-CHAR, wildcards and "]"
	classFlag               // ATOM-CHAR, and "\" at the beginning
	classSet                // sequence-set: digits, "*", ":", ",", and "$"
	classNumber             // digits
)

func class(c byte) int {
	if c <= ' ' || c >= 0x7f {
		return 0
	}
	switch c {
	case '(', ')', '{', '"', '\\':
		return 0
	case '%':
		return classList
	case '*':
		return classList | classSet
	case ']':
		return classAstr | classTag | classList
	case '+':
		return classAtom | classAstr | classList | classFlag
	}
	k := classAtom | classAstr | classTag | classList | classFlag
	if c >= '0' && c <= '9' {
		k |= classNumber | classSet
	} else if c == ':' || c == ',' || c == '$' {
		k |= classSet
	}
	return k
}

// run takes octets of a class; 8-bit ones too when utf8 is set.
func (r *Reader) run(mask int, utf8 bool) []byte {
	start := len(r.hold)
	for {
		c, err := r.peek()
		if err != nil || class(c)&mask == 0 && (!utf8 || c < 0x80) {
			return r.hold[start:len(r.hold):len(r.hold)]
		}
		r.hold = append(r.hold, c)
		r.step()
	}
}

// some is run of at least one octet, named for the message that tells it is missing.
func (r *Reader) some(mask int, utf8 bool, name string) []byte {
	b := r.run(mask, utf8)
	if len(b) == 0 && r.err == nil {
		r.Fail("%s expected, not %s", name, r.what())
	}
	return b
}

// Atom takes an atom.
func (r *Reader) Atom() []byte { return r.some(classAtom, false, "atom") }

// Word takes an atom, empty if there is none.
func (r *Reader) Word() []byte { return r.run(classAtom, false) }

// Tag takes the tag of a command.
func (r *Reader) Tag() []byte { return r.some(classTag, false, "tag") }

// Name takes an atom that ends before "[" too: FETCH items such as BODY[...].
func (r *Reader) Name() []byte {
	start := len(r.hold)
	for {
		c, err := r.peek()
		if err != nil || class(c)&classAtom == 0 || c == '[' {
			break
		}
		r.hold = append(r.hold, c)
		r.step()
	}
	b := r.hold[start:len(r.hold):len(r.hold)]
	if len(b) == 0 && r.err == nil {
		r.Fail("name expected, not %s", r.what())
	}
	return b
}

// Number64 takes a number of at most 63 bits (RFC 9051 §9, number64).
func (r *Reader) Number64() int64 {
	n, any := int64(0), false
	for {
		c, err := r.peek()
		if err != nil || c < '0' || c > '9' {
			break
		}
		if n > (math.MaxInt64-int64(c-'0'))/10 {
			r.Fail("number too large")
			return 0
		}
		n, any = 10*n+int64(c-'0'), true
		r.step()
	}
	if !any && r.err == nil {
		r.Fail("number expected, not %s", r.what())
	}
	return n
}

// Number takes a number of at most 32 bits.
func (r *Reader) Number() uint32 {
	n := r.Number64()
	if n > math.MaxUint32 {
		r.Fail("number too large")
		return 0
	}
	return uint32(n)
}

// Flag takes a flag or keyword: an atom that may begin with "\", or "\*".
func (r *Reader) Flag() string {
	start := len(r.hold)
	if r.Is('\\') {
		r.hold = append(r.hold, '\\')
		if r.Is('*') {
			r.hold = append(r.hold, '*')
			return string(r.hold[start:])
		}
	}
	r.some(classFlag, false, "flag")
	return string(r.hold[start:])
}

// Flags takes a list of flags in parentheses.
func (r *Reader) Flags() []string {
	var flags []string
	r.List(func() { flags = append(flags, r.Flag()) })
	return flags
}

// List takes a list in parentheses and calls item at each of its elements, which must take
// it.
func (r *Reader) List(item func()) {
	r.Want('(')
	if r.depth++; r.depth > r.limits.Depth {
		r.Fail("lists are nested too deep")
	}
	if r.err == nil && !r.Is(')') {
		item()
		for r.err == nil && !r.Is(')') {
			if r.Peek() != '(' { // RFC 9051 §7.5.2 has no space between some lists
				r.SP()
			}
			item()
		}
	}
	r.depth--
}

// Quoted takes a quoted string. 8-bit octets are let through (RFC 9051 §4.3): whether they
// are welcome and UTF-8 is for the caller to say.
func (r *Reader) Quoted() []byte {
	r.Want('"')
	start := len(r.hold)
	for r.err == nil {
		c, err := r.peek()
		if err != nil {
			return nil
		}
		switch c {
		case '"':
			r.step()
			return r.hold[start:len(r.hold):len(r.hold)]
		case '\r', '\n', 0:
			r.Fail("quoted string is not closed")
			return nil
		case '\\':
			r.step()
			if c, err = r.peek(); err != nil {
				return nil
			}
			if c != '"' && c != '\\' {
				r.Fail("only \" and \\ can be escaped")
				return nil
			}
		}
		r.hold = append(r.hold, c)
		r.step()
	}
	return nil
}

// String takes a quoted string or a literal of at most Limits.Literal.
func (r *Reader) String() []byte {
	switch r.Peek() {
	case '"':
		return r.Quoted()
	case '{', '~':
		return r.inMemory(r.LiteralHead())
	}
	r.Fail("string expected, not %s", r.what())
	return nil
}

// AString takes an atom or a string.
func (r *Reader) AString() []byte {
	switch r.Peek() {
	case '"', '{':
		return r.String()
	case '~':
		// An atom may begin so: only "~{" is a literal. Two octets are looked at.
		return r.tilde()
	}
	return r.some(classAstr, true, "string")
}

func (r *Reader) tilde() []byte {
	start := len(r.hold)
	r.Is('~')
	if r.Peek() == '{' {
		l := r.literalHead()
		l.Binary = true
		return r.inMemory(l)
	}
	r.hold = append(r.hold, '~')
	r.run(classAstr, true)
	return r.hold[start:len(r.hold):len(r.hold)]
}

// NString takes a string or NIL, which is nil.
func (r *Reader) NString() []byte {
	switch r.Peek() {
	case '"', '{', '~':
		if b := r.String(); b != nil || r.err != nil {
			return b
		}
		return []byte{}
	}
	r.Nil()
	return nil
}

// Nil takes NIL.
func (r *Reader) Nil() {
	if b := r.Word(); r.err == nil && !Fold(b, "NIL") {
		r.Fail("string or NIL expected")
	}
}

// ListMailbox takes the pattern of LIST: a string, or an atom with wildcards.
func (r *Reader) ListMailbox() []byte {
	if c := r.Peek(); c == '"' || c == '{' {
		return r.String()
	}
	return r.some(classList, true, "mailbox pattern")
}

// Mailbox takes a mailbox name and returns it in UTF-8. Without utf8, names are in modified
// UTF-7 (RFC 3501 §5.1.3); one that is not is taken as it is.
func (r *Reader) Mailbox(utf8 bool) string {
	return MailboxName(r.AString(), utf8)
}

// MailboxName is the mailbox that a client or server names b.
func MailboxName(b []byte, utf8 bool) string {
	if Fold(b, "INBOX") {
		return "INBOX"
	}
	if !utf8 {
		if s, ok := DecodeMUTF7(string(b)); ok {
			return s
		}
	}
	return string(b)
}

// Text takes the rest of the line.
func (r *Reader) Text() []byte {
	start := len(r.hold)
	for {
		c, err := r.peek()
		if err != nil || c == '\r' || c == '\n' {
			return r.hold[start:len(r.hold):len(r.hold)]
		}
		r.hold = append(r.hold, c)
		r.step()
	}
}

// LiteralHead takes the head of a literal: with Body, its octets can be read.
func (r *Reader) LiteralHead() Literal {
	binary := r.Is('~')
	l := r.literalHead()
	l.Binary = binary
	if r.err == nil {
		r.pending, r.waiting = l, true
	}
	return l
}

func (r *Reader) literalHead() (l Literal) {
	r.Want('{')
	l.Size = r.Number64()
	l.NonSync = r.Is('+')
	r.Want('}')
	if r.err != nil {
		return l
	}
	r.Is('\r')
	if r.err == nil && !r.Is('\n') {
		r.Fail("end of line expected behind a literal's size")
	}
	if r.err == nil {
		r.pending, r.waiting = l, true
	}
	return l
}

// Body returns the octets of the literal whose head has just been taken. What is not read of
// them is skipped by the next method.
func (r *Reader) Body() io.Reader {
	if r.err != nil {
		return failed{r.err}
	}
	if !r.waiting {
		r.Fail("no literal here")
		return failed{r.err}
	}
	r.waiting = false
	r.rest = r.pending.Size
	if !r.pending.NonSync && r.Continue != nil {
		if err := r.Continue(r.pending); err != nil {
			r.err = err
			return failed{err}
		}
	}
	return body{r}
}

type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }

type body struct{ r *Reader }

func (b body) Read(p []byte) (int, error) {
	r := b.r
	if r.rest == 0 {
		return 0, io.EOF
	}
	if r.err != nil {
		return 0, r.err
	}
	p = p[:min(int64(len(p)), r.rest)]
	var n int
	var err error
	if r.pos < r.end {
		n = copy(p, r.buf[r.pos:r.end])
		r.pos += n
	} else if len(p) >= bufSize {
		n, err = r.src.Read(p)
	} else if err = r.fill(); err == nil {
		n = copy(p, r.buf[r.pos:r.end])
		r.pos += n
	}
	r.rest -= int64(n)
	if err == io.EOF && r.rest > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && r.rest > 0 {
		r.err = err
		return n, err
	}
	return n, nil
}

// drain skips what is left of a literal's body. One that has not been asked for is refused
// by not asking: the command has ended.
func (r *Reader) drain() error {
	if r.waiting {
		r.waiting = false
		if !r.coming(r.pending) {
			r.ended = true
			return &SyntaxError{"a literal is not expected here"}
		}
		r.rest = r.pending.Size
	}
	for r.rest > 0 {
		if r.pos == r.end {
			if err := r.fill(); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
		}
		n := min(int64(r.end-r.pos), r.rest)
		r.pos += int(n)
		r.rest -= n
	}
	return nil
}

// inMemory reads the body of a literal into memory.
func (r *Reader) inMemory(l Literal) []byte {
	if r.err != nil {
		return nil
	}
	if l.Size > r.limits.Literal-r.held {
		r.err = &TooBigError{l, r.limits.Literal}
		return nil
	}
	r.held += l.Size
	start := len(r.hold)
	src := r.Body()
	if r.err != nil {
		return nil
	}
	// Memory grows with what arrives, not with what is announced.
	for r.rest > 0 {
		n := int(min(r.rest, bufSize))
		r.hold = append(r.hold, make([]byte, n)...)
		m, err := src.Read(r.hold[len(r.hold)-n:])
		r.hold = r.hold[:len(r.hold)-n+m]
		if err != nil {
			return nil
		}
	}
	return r.hold[start:len(r.hold):len(r.hold)]
}

// Fold tells whether b is s, which is upper case ASCII, in any case.
func Fold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// Skipped takes any one value of a response and forgets it: a server may send what we did
// not ask for. Literals are skipped as they come.
func (r *Reader) Skipped() {
	switch c := r.Peek(); c {
	case '(':
		r.List(r.Skipped)
	case '"':
		r.Quoted()
	case '{', '~':
		r.LiteralHead()
		if r.err == nil {
			r.Body()
		}
	default:
		r.skipWord()
	}
}

// skipWord takes an atom with what brackets hold in it: BODY[HEADER.FIELDS (A B)]<0>.
func (r *Reader) skipWord() {
	any := false
	for level := 0; ; {
		c, err := r.peek()
		switch {
		case err != nil:
			return
		case c == '[':
			level++
		case c == ']' && level > 0:
			level--
		case c == '\r' || c == '\n', level == 0 && (c == ' ' || c == '(' || c == ')'):
			if !any {
				r.Fail("value expected, not %s", r.what())
			}
			return
		}
		any = true
		r.step()
	}
}
