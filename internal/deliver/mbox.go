package deliver

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
	"strings"
	"syscall"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
)

// lockWait is how long another program may hold an mbox before delivery is deferred.
const lockWait = 30 * time.Second

// toFile delivers to a file named in an alias or forward: a Maildir when it ends in a slash,
// else an mbox.
func (d *Deliverer) toFile(ctx context.Context, j *job, l leaf, header []byte) (string, error) {
	dir := strings.HasSuffix(l.text, "/")
	path := filepath.Clean(l.text)
	if l.as.uid != d.o.UID {
		args := []string{"--mbox", path}
		if dir {
			args = d.maildirArgs(path)
		}
		return d.asUser(ctx, j, l.as, header, args)
	}
	if dir {
		return d.toMaildir(ctx, j, path, header)
	}
	return "appended", appendMbox(ctx, path, j.req.From, d.o.Now(), header, j.msg.reader())
}

// appendMbox appends one message to an mbox file in mboxrd form and syncs it. A message that
// cannot be written whole is cut off again.
func appendMbox(ctx context.Context, path, from string, now time.Time, header []byte, r io.Reader) (err error) {
	f, created, err := openMbox(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		if fi.Mode()&fs.ModeDevice != 0 && path == os.DevNull {
			_, err := io.Copy(io.Discard, r) // the usual way to throw mail away
			return err
		}
		return &Error{envelope.Defer("4.3.5", "the target is not a regular file"), errors.New(path)}
	}
	unlock, err := lockMbox(ctx, f, path)
	if err != nil {
		return err
	}
	defer unlock()
	if fi, err = f.Stat(); err != nil {
		return err
	}
	if err = writeMbox(f, from, now, io.MultiReader(bytes.NewReader(header), r)); err == nil {
		err = durable.Sync(f)
	}
	if err != nil {
		return errors.Join(err, f.Truncate(fi.Size()))
	}
	if created {
		return durable.SyncDir(filepath.Dir(path))
	}
	return nil
}

// openMbox opens the file for appending, and tells whether it was made.
func openMbox(path string) (*os.File, bool, error) {
	flags := os.O_WRONLY | os.O_APPEND | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, false, err
	}
	f, err = os.OpenFile(path, flags|os.O_CREATE, 0o600)
	return f, true, err
}

// lockMbox takes the two locks mail readers know: one of the kernel, and FILE.lock where the
// directory lets us make it.
func lockMbox(ctx context.Context, f *os.File, path string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	dot := path + ".lock"
	for {
		l, err := os.OpenFile(dot, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			err = l.Close()
		}
		noDot := errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
		if err != nil && !noDot && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if err == nil || noDot {
			drop := func() {
				if !noDot {
					_ = os.Remove(dot) // left behind, it delays the next delivery, which then says so
				}
			}
			// The kernel's lock goes with the file's Close.
			if err = durable.TryLock(f, false); err == nil {
				return drop, nil
			}
			drop()
			if !errors.Is(err, durable.ErrLocked) {
				return nil, err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, &Error{envelope.Defer("4.2.0", "the mailbox file is locked by another program"), errors.New(path)}
		}
	}
}

// writeMbox writes a From line, the message with From lines quoted, and an empty line.
func writeMbox(w io.Writer, from string, now time.Time, r io.Reader) error {
	if from == "" || strings.ContainsAny(from, " \t") {
		from = "MAILER-DAEMON"
	}
	out := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintf(out, "From %s %s\n", from, now.UTC().Format(time.ANSIC))
	in := bufio.NewReaderSize(r, 64<<10)
	start, last := true, byte('\n')
	for {
		b, err := in.ReadSlice('\n')
		if start && bytes.HasPrefix(bytes.TrimLeft(b, ">"), []byte("From ")) {
			out.WriteByte('>')
		}
		out.Write(b)
		if len(b) > 0 {
			last = b[len(b)-1]
		}
		start = err == nil
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
	if last != '\n' {
		out.WriteByte('\n')
	}
	out.WriteByte('\n')
	return out.Flush()
}
