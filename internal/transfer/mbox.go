package transfer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/imapwire"
	"pennypost/internal/maildir"
)

// Mbox is a Source of mbox files (RFC 4155 Appendix A): one file is the inbox, a directory
// holds one file for each mailbox, in whatever depth.
//
// Messages begin at a line "From " that has a date at its end and follows an empty line; so
// all of the four customs are read: mboxrd (">From " loses one ">", ">>From " too), mboxo
// ("> From" alone was quoted; reading it the mboxrd way differs only for lines that were
// ">From" before), and mboxcl and mboxcl2, whose Content-Length is believed when a message
// or the end of the file is where it says.
type Mbox struct {
	Path string
	file bool
}

// OpenMbox opens a file or directory.
func OpenMbox(path string) (*Mbox, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return &Mbox{Path: path, file: !fi.IsDir()}, nil
}

// ID is the same for all: keys are made of what the messages hold.
func (m *Mbox) ID() string { return "mbox" }

// Close does nothing.
func (m *Mbox) Close() error { return nil }

// Mailboxes lists files; ".mbox" and ".mbx" at the end, and Thunderbird's ".sbd" of
// directories, are no part of a name.
func (m *Mbox) Mailboxes(context.Context) ([]string, error) {
	if m.file {
		return []string{maildir.Inbox}, nil
	}
	var names []string
	err := m.walk(func(name, _ string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	})
	return names, err
}

func (m *Mbox) walk(each func(name, path string)) error {
	return filepath.WalkDir(m.Path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == m.Path {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || !beginsMbox(path) {
			return nil
		}
		rel, err := filepath.Rel(m.Path, path)
		if err != nil {
			return err
		}
		levels := strings.Split(filepath.ToSlash(rel), "/")
		for i, l := range levels {
			levels[i] = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(l, ".sbd"), ".mbox"), ".mbx")
		}
		name := strings.Join(levels, "/")
		if strings.EqualFold(name, maildir.Inbox) {
			name = maildir.Inbox
		}
		each(name, path)
		return nil
	})
}

// beginsMbox tells whether a file is empty or begins as an mbox does.
func beginsMbox(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return true // reading it will tell why
	}
	defer f.Close()
	var b [5]byte
	n, err := io.ReadFull(f, b[:])
	return n == 0 && errors.Is(err, io.EOF) || string(b[:n]) == "From "
}

// Messages reads the files of a mailbox: several where their names differ in what is no part
// of it.
func (m *Mbox) Messages(ctx context.Context, name string, known func(string) bool, _ func(int)) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		paths := []string{m.Path}
		if !m.file {
			paths = nil
			if err := m.walk(func(n, p string) {
				if n == name {
					paths = append(paths, p)
				}
			}); err != nil {
				yield(Message{}, err)
				return
			}
		}
		again := make(map[[32]byte]int)
		for _, path := range paths {
			more, err := mboxFile(ctx, path, again, known, yield)
			if err != nil {
				yield(Message{}, err)
			}
			if err != nil || !more {
				return
			}
		}
	}
}

// mboxFile yields the messages of one file.
func mboxFile(ctx context.Context, path string, again map[[32]byte]int, known func(string) bool, yield func(Message, error) bool) (more bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	r := newMboxReader(path, f, fi.Size())
	r.again = again
	for ctx.Err() == nil {
		msg, err := r.next()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if !known(msg.Key) && !yield(msg, nil) {
			return false, nil
		}
	}
	return false, ctx.Err()
}

// mboxReader takes messages from an mbox. A message is read twice: once to find its end and
// what it is, once to be stored.
type mboxReader struct {
	name  string
	f     *io.SectionReader
	r     *bufio.Reader
	off   int64  // of r
	line  []byte // the line read last; the "From " line between messages
	again map[[32]byte]int
	begun bool
}

func newMboxReader(name string, f io.ReaderAt, size int64) *mboxReader {
	r := &mboxReader{name: name, f: io.NewSectionReader(f, 0, size), again: make(map[[32]byte]int)}
	r.r = bufio.NewReaderSize(r.f, 64<<10)
	return r
}

const maxMboxLine = 1 << 20

// read returns the next line with its end, a piece of it when it is very long.
func (r *mboxReader) read() ([]byte, error) {
	r.line = r.line[:0]
	for {
		b, err := r.r.ReadSlice('\n')
		r.line = append(r.line, b...)
		r.off += int64(len(b))
		if errors.Is(err, bufio.ErrBufferFull) && len(r.line) < maxMboxLine {
			continue
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && (len(r.line) == 0 || !errors.Is(err, io.EOF)) {
			return nil, err
		}
		return r.line, nil
	}
}

// fromLine tells whether line begins a message, and when it came.
func fromLine(line []byte) (time.Time, bool) {
	rest, ok := bytes.CutPrefix(line, []byte("From "))
	if !ok || len(rest) > 1000 {
		return time.Time{}, false
	}
	words := strings.Fields(string(rest))
	for i, w := range words {
		if len(words)-i < 4 || !strings.Contains(" Mon Tue Wed Thu Fri Sat Sun ", " "+w+" ") {
			continue
		}
		date := strings.Join(words[i:], " ")
		for _, form := range []string{time.ANSIC, "Mon Jan _2 15:04:05 2006 -0700", "Mon Jan _2 15:04:05 -0700 2006", time.UnixDate, "Mon Jan _2 15:04 2006", "Mon Jan _2 15:04:05 MST 2006", "Mon, _2 Jan 2006 15:04:05 -0700"} {
			if t, err := time.Parse(strings.ReplaceAll(form, "_2", "2"), date); err == nil {
				return t, true
			}
		}
	}
	return time.Time{}, false
}

// next returns the message behind the "From " line at hand.
func (r *mboxReader) next() (Message, error) {
	if !r.begun {
		line, err := r.read()
		if err != nil {
			return Message{}, err
		}
		if _, ok := fromLine(line); !ok {
			return Message{}, refused(ErrFormat, "%s: not an mbox: no \"From \" line with a date at the beginning", r.name)
		}
		r.begun = true
	}
	if r.line == nil {
		return Message{}, io.EOF
	}
	date, _ := fromLine(r.line)
	msg := Message{Date: date, Size: -1}
	head, err := r.header(&msg)
	if err != nil {
		return msg, err
	}
	start := r.off
	sum := sha256.New()
	sum.Write(head.keep)
	quoted, err := r.body(sum, head)
	if err != nil {
		return msg, err
	}
	var key [32]byte
	sum.Sum(key[:0])
	r.again[key]++
	msg.Key = hex.EncodeToString(key[:])
	if n := r.again[key]; n > 1 { // the same message again is another one
		msg.Key += "." + strconv.Itoa(n)
	}
	body := io.NewSectionReader(r.f, start, quoted.end-start)
	if quoted.any {
		msg.Body = io.MultiReader(bytes.NewReader(head.keep), &unquoter{r: bufio.NewReader(body), bol: true})
	} else {
		msg.Body = io.MultiReader(bytes.NewReader(head.keep), body)
	}
	return msg, nil
}

// mboxHead is the header of a message: without the fields in which mbox programs keep what
// is no part of it.
type mboxHead struct {
	keep   []byte
	length int64 // Content-Length, -1 without one
}

const maxMboxHead = 4 << 20

func (r *mboxReader) header(msg *Message) (h mboxHead, err error) {
	h.length = -1
	drop := false
	for {
		line, err := r.read()
		if errors.Is(err, io.EOF) {
			return h, nil
		}
		if err != nil {
			return h, err
		}
		text := bytes.TrimRight(line, "\r\n")
		if len(text) == 0 {
			h.keep = append(h.keep, line...)
			return h, nil
		}
		if text[0] != ' ' && text[0] != '\t' {
			name, value, _ := bytes.Cut(text, []byte(":"))
			drop = h.field(msg, strings.ToLower(string(bytes.TrimSpace(name))), strings.TrimSpace(string(value)))
		}
		if drop {
			continue
		}
		if isQuoted(line) {
			line = line[1:]
		}
		if h.keep = append(h.keep, line...); len(h.keep) > maxMboxHead {
			return h, nil // what follows is copied as the body is
		}
	}
}

// field looks at a header field, and tells whether it is one of the mbox and not of the
// message.
func (h *mboxHead) field(msg *Message, name, value string) (drop bool) {
	switch name {
	case "status", "x-status":
		for _, c := range value {
			switch c {
			case 'R':
				msg.Flags |= maildir.Seen
			case 'A':
				msg.Flags |= maildir.Replied
			case 'F':
				msg.Flags |= maildir.Flagged
			case 'D':
				msg.Flags |= maildir.Trashed
			case 'T':
				msg.Flags |= maildir.Draft
			}
		}
	case "x-mozilla-status":
		if n, err := strconv.ParseUint(value, 16, 32); err == nil {
			msg.Flags |= mozilla(n)
		}
	case "x-keywords", "x-mozilla-keys":
		for _, k := range strings.Fields(strings.ReplaceAll(value, ",", " ")) {
			if imapwire.ValidKeyword(k) && len(msg.Keywords) < 64 {
				msg.Keywords = append(msg.Keywords, k)
			}
		}
	case "content-length":
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && n >= 0 {
			h.length = n
		}
	case "x-imap", "x-imapbase", "x-uid", "x-mozilla-status2":
	default:
		return false
	}
	return true
}

// mozilla translates the bits of X-Mozilla-Status.
func mozilla(n uint64) (f maildir.Flags) {
	for bit, flag := range map[uint64]maildir.Flags{1: maildir.Seen, 2: maildir.Replied, 4: maildir.Flagged, 8: maildir.Trashed, 0x1000: maildir.Passed} {
		if n&bit != 0 {
			f |= flag
		}
	}
	return f
}

// quoting says where a body ends and whether lines of it are quoted.
type quoting struct {
	end int64
	any bool
}

// body reads on to the next "From " line, which it leaves in r.line; nil there is the end of
// the file. The empty line before it belongs to the mbox.
func (r *mboxReader) body(sum io.Writer, h mboxHead) (q quoting, err error) {
	start := r.off
	if ok, err := r.counted(sum, start, h.length, &q); ok || err != nil {
		return q, err
	}
	empty := true // the header's
	gap := []byte(nil)
	bol := true
	for {
		line, err := r.read()
		if errors.Is(err, io.EOF) {
			// The empty line at the end of a well-made file is the mbox's too.
			q.end = r.off - int64(len(gap))
			r.line = nil
			return q, nil
		}
		if err != nil {
			return q, err
		}
		if bol && empty {
			if _, ok := fromLine(line); ok {
				q.end = r.off - int64(len(line)) - int64(len(gap))
				return q, nil
			}
		}
		if _, err := sum.Write(gap); err != nil {
			return q, err
		}
		gap = nil
		q.any = q.any || bol && isQuoted(line)
		whole := line[len(line)-1] == '\n'
		if empty = bol && whole && len(bytes.TrimRight(line, "\r\n")) == 0; empty {
			gap = append(gap, line...)
		} else if _, err := sum.Write(line); err != nil {
			return q, err
		}
		bol = whole
	}
}

// counted takes the body by its Content-Length, if a message or the end is there.
func (r *mboxReader) counted(sum io.Writer, start, length int64, q *quoting) (bool, error) {
	if length < 0 {
		return false, nil
	}
	size := r.f.Size()
	if length > size-start {
		return false, nil
	}
	end := start + length
	var b [1024]byte
	n, err := r.f.ReadAt(b[:], end)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	rest := bytes.TrimLeft(b[:n], "\r\n")
	skip := int64(n - len(rest))
	if len(rest) == 0 && end+skip < size {
		return false, nil // more empty lines than are looked at
	}
	if len(rest) > 0 {
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		if _, ok := fromLine(line); !ok || skip == 0 && length > 0 {
			return false, nil
		}
	}
	if _, err := io.Copy(sum, io.NewSectionReader(r.f, start, length)); err != nil {
		return false, err
	}
	if _, err := r.f.Seek(end+skip, io.SeekStart); err != nil {
		return false, err
	}
	r.r.Reset(r.f)
	r.off = end + skip
	q.end = end
	if len(rest) == 0 {
		r.line = nil
		return true, nil
	}
	_, err = r.read()
	return true, err
}

// isQuoted tells whether line is ">From " with any number of ">".
func isQuoted(line []byte) bool {
	t := bytes.TrimLeft(line, ">")
	return len(t) < len(line) && bytes.HasPrefix(t, []byte("From "))
}

// unquoter takes one ">" off such lines.
type unquoter struct {
	r   *bufio.Reader
	bol bool
	out []byte
}

func (u *unquoter) Read(p []byte) (int, error) {
	for len(u.out) == 0 {
		line, err := u.r.ReadSlice('\n')
		if len(line) == 0 && err != nil {
			return 0, err
		}
		if u.bol && isQuoted(line) {
			line = line[1:]
		}
		u.out = line
		u.bol = err == nil
	}
	n := copy(p, u.out)
	u.out = u.out[n:]
	return n, nil
}
