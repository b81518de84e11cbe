package transfer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/mailbox"
	"pennypost/internal/maildir"
)

// ToMbox copies the account s to mbox files (mboxrd) below the directory dir, one for each
// mailbox, with Status, X-Status and X-Keywords for flags and X-UID and X-IMAPbase for UIDs,
// as UW IMAP and Dovecot have them. Done again, messages with higher UIDs are appended; flags
// of those that are there stay.
func ToMbox(ctx context.Context, s *mailbox.Store, dir string, o Options) error {
	names, err := existing(ctx, s)
	if err != nil {
		return err
	}
	if names, err = o.choose(names); err != nil {
		return err
	}
	for _, name := range names {
		if err := o.mboxMailbox(ctx, s, filepath.Join(dir, filepath.FromSlash(safe(name))+".mbox"), name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// safe makes levels that are no file names into some.
func safe(name string) string {
	levels := strings.Split(name, "/")
	for i, l := range levels {
		if strings.HasPrefix(l, ".") {
			levels[i] = "_" + l[1:]
		}
		levels[i] = strings.ReplaceAll(levels[i], "\x00", "_")
	}
	return strings.Join(levels, "/")
}

func (o *Options) mboxMailbox(ctx context.Context, s *mailbox.Store, path, name string) (err error) {
	v, done, err := view(ctx, s, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	res := Result{From: name, To: path}
	if err := o.takeBack(path); err != nil {
		return err
	}
	after, err := lastUID(o.fs(), path, v.UIDValidity())
	if err != nil {
		return err
	}
	from := v.From(after + 1)
	res.Known = from - 1
	if o.DryRun {
		res.New = v.Len() - from + 1
		o.report(res)
		return nil
	}
	if err := durable.MkdirAllOn(o.fs(), filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := o.fs().OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := durable.WriteFileOn(o.fs(), sizeName(path), strconv.AppendInt(nil, fi.Size(), 10), 0o600); err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 256<<10)
	for seq, m := range v.All(from, v.Len()) {
		if err = ctx.Err(); err == nil {
			o.progress(name, seq, v.Len())
			err = mboxMessage(ctx, w, v, m, fi.Size() == 0 && res.New == 0)
		}
		if errors.Is(err, mailbox.ErrExpunged) || errors.Is(err, fs.ErrNotExist) {
			err = nil
			continue
		}
		if err != nil {
			break
		}
		res.New++
	}
	if err = errors.Join(err, w.Flush()); err == nil {
		err = errors.Join(durable.Sync(f), durable.SyncDirOn(o.fs(), filepath.Dir(path)))
	}
	if err != nil {
		// Half a message would hide behind the one before it.
		if terr := f.Truncate(fi.Size()); terr != nil {
			return errors.Join(err, terr) // the next run does it
		}
	}
	if err = errors.Join(err, o.fs().Remove(sizeName(path))); err == nil {
		o.report(res)
	}
	return err
}

// sizeName is the file that says how long an mbox was before the export that is under way.
func sizeName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".size")
}

// takeBack cuts off what an export that was killed has appended: half a message at the end
// would pass for one that is there.
func (o *Options) takeBack(path string) error {
	b, err := readFile(o.fs(), sizeName(path))
	if err != nil || b == nil {
		return err
	}
	size, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return refused(ErrFormat, "%s: no size in it", sizeName(path))
	}
	if o.DryRun {
		return nil
	}
	f, err := o.fs().OpenFile(path, os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return o.fs().Remove(sizeName(path)) // nothing of it has reached the disk
	}
	if err != nil {
		return err
	}
	if fi, serr := f.Stat(); serr != nil || size < fi.Size() {
		err = errors.Join(serr, f.Truncate(size), durable.Sync(f))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return o.fs().Remove(sizeName(path))
}

// lastUID finds the highest UID in an mbox that an export has written, 0 in none.
func lastUID(fsys durable.FS, path string, validity uint32) (uint32, error) {
	f, err := open(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	header, empty, seen, base := false, true, false, false
	last := uint64(0)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) == 0 && errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return 0, err
		}
		if empty && !header {
			if _, ok := fromLine(line); ok {
				header, seen = true, true
			}
		}
		if n, ok := bytes.CutPrefix(line, []byte("X-UID: ")); ok && header {
			if uid, err := strconv.ParseUint(string(bytes.TrimSpace(n)), 10, 32); err == nil {
				last = max(last, uid)
			}
		}
		if n, ok := bytes.CutPrefix(line, []byte("X-IMAPbase: ")); ok && header {
			word, _, _ := strings.Cut(string(n), " ")
			base = word == strconv.FormatUint(uint64(validity), 10)
		}
		if empty = len(bytes.TrimRight(line, "\r\n")) == 0; empty {
			header = false
		}
	}
	if seen && !base {
		return 0, refused(ErrOccupied, "%s is not an export of this mailbox (UIDVALIDITY %d): export to another place", path, validity)
	}
	return uint32(last), nil
}

// mboxMessage writes one message. Nothing of it is written when it is gone.
func mboxMessage(ctx context.Context, w *bufio.Writer, v *mailbox.View, m mailbox.Message, first bool) (err error) {
	body, err := v.Open(ctx, m.UID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	r := bufio.NewReaderSize(io.NewSectionReader(body, 0, body.Size), 64<<10)
	fmt.Fprintf(w, "From MAILER-DAEMON %s\n", time.Unix(m.Internal, 0).UTC().Format(time.ANSIC))
	if first {
		fmt.Fprintf(w, "X-IMAPbase: %d %010d", v.UIDValidity(), v.UIDNext()-1)
		for _, k := range v.Keywords() {
			if k != "" {
				fmt.Fprintf(w, " %s", k)
			}
		}
		w.WriteByte('\n')
	}
	fmt.Fprintf(w, "X-UID: %d\nStatus: %s\n", m.UID, status(m.Flags, maildir.Seen)+"O")
	if x := status(m.Flags, maildir.Replied|maildir.Flagged|maildir.Trashed|maildir.Draft); x != "" {
		fmt.Fprintf(w, "X-Status: %s\n", x)
	}
	if k := keywords(v, m); len(k) > 0 {
		fmt.Fprintf(w, "X-Keywords: %s\n", strings.Join(k, " "))
	}
	return mboxText(w, r)
}

func status(f, which maildir.Flags) (s string) {
	for _, c := range []struct {
		bit    maildir.Flags
		letter string
	}{{maildir.Seen, "R"}, {maildir.Replied, "A"}, {maildir.Flagged, "F"}, {maildir.Trashed, "D"}, {maildir.Draft, "T"}} {
		if f&which&c.bit != 0 {
			s += c.letter
		}
	}
	return s
}

// mboxText copies header and body, quotes "From " lines, and ends with an empty line. Fields
// of the message that the mbox has for itself go: they are not this mailbox's.
func mboxText(w *bufio.Writer, r *bufio.Reader) error {
	header, drop, bol, last := true, false, true, byte('\n')
	var h mboxHead
	for {
		line, err := r.ReadSlice('\n')
		if len(line) == 0 {
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
		text := bytes.TrimRight(line, "\r\n")
		if header && bol {
			if header = len(text) > 0; !header {
				drop = false
			} else if text[0] != ' ' && text[0] != '\t' {
				name, _, _ := bytes.Cut(text, []byte(":"))
				var ignored Message
				drop = h.field(&ignored, strings.ToLower(string(bytes.TrimSpace(name))), "")
			}
		}
		if !drop || !header {
			if bol && bytes.HasPrefix(bytes.TrimLeft(line, ">"), []byte("From ")) {
				w.WriteByte('>')
			}
			if bytes.HasSuffix(line, []byte("\r\n")) {
				line = append(line[:len(line)-2], '\n')
			}
			w.Write(line)
		}
		bol = err == nil
		last = line[len(line)-1]
	}
	if header { // a message without body has no empty line
		if last != '\n' {
			w.WriteByte('\n')
		}
		last = '\n'
		w.WriteByte('\n')
	}
	if last != '\n' {
		w.WriteByte('\n')
	}
	_, err := w.WriteString("\n") // all that went wrong before comes back here or from Flush
	return err
}
