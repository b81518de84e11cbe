package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pennypost/internal/config"
)

// Logger opens the log that the configuration names, for the tool called name: stderr, syslog,
// or a file that is appended to. Records never go to descriptor 2 while that is the client's
// connection; then syslog takes them, and if syslog cannot be reached they are dropped.
func Logger(cfg *config.Config, name string) (*slog.Logger, error) {
	var w io.Writer
	format := cfg.LogFormat
	path, isFile := strings.CutPrefix(cfg.Log, "file:")
	switch {
	case isFile:
		f := &logFile{path: path}
		if err := f.open(); err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
		w = f
	case cfg.Log == "syslog" || fd2IsClient():
		conn := &syslogConn{
			tag:   fmt.Sprintf("%s[%d]", name, os.Getpid()),
			paths: []string{"/dev/log", "/var/run/syslog", "/var/run/log"},
		}
		return slog.New(&syslogHandler{state: conn, json: format == "json"}), nil
	default:
		w = os.Stderr
	}
	var h slog.Handler
	if format == "json" {
		h = slog.NewJSONHandler(w, nil)
	} else {
		h = slog.NewTextHandler(w, nil)
	}
	return slog.New(h).With("tool", name), nil
}

// fd2IsClient tells whether standard error is the same socket as standard input: inetd and
// systemd's StandardInput=socket hand the client's connection over as all three.
func fd2IsClient() bool { return sameSocket(0, 2) }

func sameSocket(a, b int) bool {
	var sa, sb unix.Stat_t
	if unix.Fstat(a, &sa) != nil || unix.Fstat(b, &sb) != nil {
		return false
	}
	return uint32(sa.Mode)&unix.S_IFMT == unix.S_IFSOCK && sa.Dev == sb.Dev && sa.Ino == sb.Ino
}

// syslogHandler writes records to the local syslog socket. It formats with slog's own handlers
// into a buffer; the time stands in the syslog header, so it is left out of the text.
type syslogHandler struct {
	state *syslogConn
	json  bool
	with  []func(slog.Handler) slog.Handler
}

func (h *syslogHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *syslogHandler) WithAttrs(as []slog.Attr) slog.Handler {
	return h.extend(func(n slog.Handler) slog.Handler { return n.WithAttrs(as) })
}

func (h *syslogHandler) WithGroup(name string) slog.Handler {
	return h.extend(func(n slog.Handler) slog.Handler { return n.WithGroup(name) })
}

func (h *syslogHandler) extend(f func(slog.Handler) slog.Handler) slog.Handler {
	n := *h
	n.with = append(h.with[:len(h.with):len(h.with)], f)
	return &n
}

func (h *syslogHandler) Handle(ctx context.Context, r slog.Record) error {
	var b strings.Builder
	opts := &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}}
	var inner slog.Handler = slog.NewTextHandler(&b, opts)
	if h.json {
		inner = slog.NewJSONHandler(&b, opts)
	}
	for _, f := range h.with {
		inner = f(inner)
	}
	if err := inner.Handle(ctx, r); err != nil {
		return err
	}
	h.state.send(severity(r.Level), r.Time, strings.TrimSuffix(b.String(), "\n"))
	return nil
}

// severity maps a level to the severities of RFC 5424 §6.2.1.
func severity(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// syslogConn is the datagram socket of the local syslog daemon. It is opened when first used
// and once more when a send fails; a record that cannot be sent then is dropped.
type syslogConn struct {
	tag   string
	paths []string // where the socket may be; the systems differ
	mu    sync.Mutex
	fd    int // 0: not open
}

func (s *syslogConn) send(severity int, t time.Time, msg string) {
	const facilityMail = 2
	// The traditional local form: every syslog daemon reads it from its UNIX socket.
	line := fmt.Sprintf("<%d>%s %s: %s", facilityMail<<3|severity, t.Format(time.Stamp), s.tag, msg)
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 2 {
		if s.fd == 0 && !s.open() {
			return
		}
		if err := unix.Send(s.fd, []byte(line), 0); err == nil || err == unix.EMSGSIZE {
			return
		}
		unix.Close(s.fd)
		s.fd = 0
	}
}

func (s *syslogConn) open() bool {
	for _, path := range s.paths {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err != nil {
			return false
		}
		unix.CloseOnExec(fd)
		if unix.SetNonblock(fd, true) == nil && unix.Connect(fd, &unix.SockaddrUnix{Name: path}) == nil {
			s.fd = fd
			return true
		}
		unix.Close(fd)
	}
	return false
}
