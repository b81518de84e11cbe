package spool

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"pennypost/internal/durable"
	"pennypost/internal/envelope"
)

// memFile is a spool file in memory.
type memFile struct {
	durable.File
	*bytes.Reader
}

func (f memFile) ReadAt(b []byte, at int64) (int, error) { return f.Reader.ReadAt(b, at) }
func (f memFile) Read(b []byte) (int, error)             { return f.Reader.Read(b) }

func seedFile(f *testing.F, body string) []byte {
	f.Helper()
	env := testEnvelope()
	env.ID, env.Time, env.EOL = "1k80h9stqs8hdfoio9", time.UnixMilli(1763776800123).UTC(), envelope.EOLLF
	line2, err := encodeEnvelope(env)
	if err != nil {
		f.Fatal(err)
	}
	h := header{envelope: int64(len(line2)), message: int64(len(body)), crc: checksum(checksum(0, line2), []byte(body))}
	return append(append([]byte(h.String()), line2...), body...)
}

// Property: no panic, and what is taken for a message has the length and the checksum its first
// line says and an envelope that prints and parses to itself.
func FuzzMessageFile(f *testing.F) {
	f.Add(seedFile(f, "Subject: x\n\nbody\n"))
	f.Add(seedFile(f, ""))
	f.Add(seedFile(f, strings.Repeat("long\n", 3000)))
	f.Add([]byte(unfinished + "{}"))
	f.Add([]byte("pennypost-spool 2 \n"))
	s := &Spool{euid: uint32(os.Geteuid())}
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum is put right, so that the fuzzer gets past it.
		if h, err := parseHeader(b); err == nil {
			h.crc = checksum(0, b[headerLen:])
			b = append([]byte(h.String()), b[headerLen:]...)
		}
		m := &Message{ID: "1k80h9stqs8hdfoio9", f: memFile{Reader: bytes.NewReader(b)}}
		if err := s.parse(m, int64(len(b)), true); err != nil {
			return
		}
		if m.Offset+m.Size != int64(len(b)) || m.Env.ID != m.ID || len(m.Env.To) == 0 {
			t.Fatalf("%q gave %+v", b, m)
		}
		line2, err := encodeEnvelope(m.Env)
		if err != nil {
			t.Skip("a time that JSON cannot print") // years beyond 9999
		}
		again, err := decodeEnvelope(m.ID, line2)
		if err != nil || !sameJSON(again, m.Env) {
			t.Fatalf("%+v\nbecame %+v: %v", m.Env, again, err)
		}
	})
}

func sameJSON(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// Property: no panic; a state never gains recipients; a log cut anywhere gives a state with at
// least the recipients of the whole one.
func FuzzAttemptLog(f *testing.F) {
	f.Add([]byte(`{"v":1,"time":"2026-11-22T03:00:00Z","kind":"attempt","round":1,"results":[{"to":"b@y.test","status":"delivered","dsn":"2.0.0","delay_ms":3}],"due":"2026-11-22T04:00:00Z"}
{"v":1,"time":"2026-11-22T03:00:00Z","kind":"rm","to":["c@y.test"]}
`), 40)
	f.Add([]byte("{\"v\":2}\n\x00\x00"), 3)
	f.Add([]byte("\n\n{}\n[]\nnull\n"), 5)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		run := func(b []byte) (State, error) {
			st := NewState(testEnvelope())
			n := len(st.Left)
			err := readRecords(bytes.NewReader(b), func(r *Record) error {
				st.Apply(r)
				if len(st.Left) > n {
					t.Fatalf("%q adds recipients", b)
				}
				n = len(st.Left)
				return nil
			})
			return st, err
		}
		whole, err := run(b)
		if err != nil || cut < 0 || cut > len(b) {
			return
		}
		if part, err := run(b[:cut]); err != nil || len(part.Left) < len(whole.Left) {
			t.Fatalf("cut at %d: %v, left %v of %v", cut, err, part.Left, whole.Left)
		}
	})
}

// Property: no panic; each entry read prints to a line that is read to the same entry.
func FuzzSnapshot(f *testing.F) {
	e := Entry{ID: "1k80h9stqs8hdfoio9", From: "a@x.test", To: "b@y.test", Hop: "y.test", Due: time.UnixMilli(7).UTC(), Size: 5, Left: 2, Attempts: 1, Hold: true}
	line, err := appendLine([]byte(snapshotWord+"7\n"), &e, false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	if line, err = appendLine(line, &e, true); err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte(journalWord + "7\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, seq, err := lines(bytes.NewReader(mendSums(b)), snapshotWord)
		if err != nil {
			return
		}
		for e, drop := range seq {
			line, err := appendLine(nil, &e, drop)
			if err != nil {
				continue // control characters: our writer refuses them
			}
			again, d, err := parseLine(line[:len(line)-1])
			if err != nil || d != drop || !reflect.DeepEqual(again, e) {
				t.Fatalf("%+v\nbecame %+v: %v", e, again, err)
			}
		}
	})
}

// mendSums puts the checksums right, so that the fuzzer gets past them.
func mendSums(b []byte) []byte {
	out := bytes.Split(bytes.Clone(b), []byte("\n"))
	for _, l := range out[1:] {
		if len(l) > 9 {
			putHex(l[:8], checksum(0, l[9:]))
			l[8] = ' '
		}
	}
	return bytes.Join(out, []byte("\n"))
}
