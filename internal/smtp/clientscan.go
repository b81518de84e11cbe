package smtp

import (
	"bytes"
	"encoding/binary"
	"io"
)

// Shape is what a message's text asks of a peer. The zero Shape is that of no text at all.
type Shape struct {
	Size        int64 // octets with CRLF line ends and without dot stuffing, as RFC 1870 §5 counts
	Header      int64 // octets of the header as stored, its empty line included
	HeaderEight bool  // octets over 127 in the header
	BodyEight   bool  // octets over 127 behind it
	Long        bool  // a line over 998 octets
	Binary      bool  // NUL, or CR or LF alone where the text is said to have CRLF line ends
}

// ScanText reads text to its end. With wire its lines end in CRLF and a lone CR or LF is binary;
// else a lone LF is a line's end and only NUL is binary.
func ScanText(r io.Reader, wire bool) (Shape, error) {
	s := clientScan{wire: wire}
	buf := make([]byte, clientBlock)
	for {
		n, err := r.Read(buf)
		s.add(buf[:n])
		if err == io.EOF {
			s.end()
			return s.Shape, nil
		}
		if err != nil {
			return s.Shape, err
		}
	}
}

// ScanBytes is ScanText for a text that is in memory.
func ScanBytes(b []byte, wire bool) Shape {
	s := clientScan{wire: wire}
	s.add(b)
	s.end()
	return s.Shape
}

type clientScan struct {
	Shape
	wire   bool
	body   bool
	lineOf int64 // octets of the open line so far
	cr     bool  // the last octet was CR
}

func (s *clientScan) add(p []byte) {
	if !s.Binary && bytes.IndexByte(p, 0) >= 0 {
		s.Binary = true
	}
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i]
		}
		s.part(part)
		if i < 0 {
			return
		}
		s.newline()
		p = p[i+1:]
	}
}

// part takes text without LF.
func (s *clientScan) part(p []byte) {
	if len(p) == 0 {
		return
	}
	if s.wire && (s.cr || bytes.IndexByte(p[:len(p)-1], '\r') >= 0) {
		s.Binary = true // the CR was not followed by LF
	}
	s.cr = p[len(p)-1] == '\r'
	s.lineOf += int64(len(p))
	if !s.body {
		s.Header += int64(len(p))
		s.HeaderEight = s.HeaderEight || clientEight(p)
	} else if !s.BodyEight {
		s.BodyEight = clientEight(p)
	}
}

func (s *clientScan) newline() {
	if s.wire && !s.cr {
		s.Binary = true
	}
	if s.cr {
		s.lineOf--
	}
	if !s.body {
		s.Header++
		s.body = s.lineOf == 0
	}
	s.Long = s.Long || s.lineOf > MaxTextLine
	s.Size += s.lineOf + 2
	s.lineOf, s.cr = 0, false
}

func (s *clientScan) end() {
	if s.lineOf > 0 {
		s.Long = s.Long || s.lineOf > MaxTextLine
		s.Size += s.lineOf
		if s.wire && s.cr {
			s.Binary = true
		}
		if !s.wire {
			s.Size += 2 // the line's end that DotWriter adds
		}
	}
}

// clientEight tells whether an octet of p is over 127, eight at a time.
func clientEight(p []byte) bool {
	for len(p) >= 8 {
		if binary.NativeEndian.Uint64(p)&0x8080808080808080 != 0 {
			return true
		}
		p = p[8:]
	}
	for _, c := range p {
		if c >= 0x80 {
			return true
		}
	}
	return false
}
