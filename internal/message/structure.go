package message

import (
	"bytes"
	"strconv"
)

func appendInt(dst []byte, n int64) []byte { return strconv.AppendInt(dst, n, 10) }

// appendNString appends a string (RFC 9051 §4.3), or NIL for nil: quoted where that is
// allowed to clients without UTF-8, else a literal. NUL is no character of either; it
// becomes U+FFFD.
func appendNString(dst, v []byte) []byte {
	if v == nil {
		return append(dst, "NIL"...)
	}
	plain := true
	for _, c := range v {
		if c >= 0x80 || c == 0 || c == '\r' || c == '\n' || c == '"' || c == '\\' {
			plain = false
			if c != '"' && c != '\\' {
				return appendLiteral(dst, v)
			}
		}
	}
	dst = append(dst, '"')
	if plain {
		return append(append(dst, v...), '"')
	}
	for _, c := range v {
		if c == '"' || c == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return append(dst, '"')
}

func appendLiteral(dst, v []byte) []byte {
	nuls := bytes.Count(v, []byte{0})
	dst = appendInt(append(dst, '{'), int64(len(v)+2*nuls))
	dst = append(dst, "}\r\n"...)
	if nuls == 0 {
		return append(dst, v...)
	}
	for _, c := range v {
		if c == 0 {
			dst = append(dst, "\uFFFD"...)
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

func appendParams(dst []byte, list []Param) []byte {
	if len(list) == 0 {
		return append(dst, "NIL"...)
	}
	for i, p := range list {
		if i == 0 {
			dst = append(dst, '(')
		} else {
			dst = append(dst, ' ')
		}
		dst = appendNString(dst, p.Name)
		dst = append(dst, ' ')
		dst = appendNString(dst, p.Value)
	}
	return append(dst, ')')
}

// maxStructure bounds what a mail of addresses becomes: two octets of a list make a hundred.
// Enclosed messages that come behind it have an empty ENVELOPE.
const maxStructure = 16 << 20

const usASCII = `"charset" "us-ascii"`

// AppendBody appends what follows BODY, or, extended, BODYSTRUCTURE in a FETCH reply,
// parentheses included (RFC 9051 §7.5.2).
func AppendBody(dst []byte, p *Part, extended bool) []byte {
	dst = append(dst, '(')
	if p.Kind == Multipart {
		dst = appendMultipart(dst, p, extended)
	} else {
		dst = appendSingle(dst, p, extended)
	}
	return append(dst, ')')
}

func appendMultipart(dst []byte, p *Part, extended bool) []byte {
	for _, q := range p.Parts {
		dst = AppendBody(dst, q, extended)
	}
	if len(p.Parts) == 0 {
		// The grammar wants one: an empty text.
		dst = append(dst, `("text" "plain" (`+usASCII+`) NIL NIL "7bit" 0 0`...)
		if extended {
			dst = append(dst, " NIL NIL NIL NIL"...)
		}
		dst = append(dst, ')')
	}
	dst = appendNString(append(dst, ' '), p.Subtype)
	if !extended {
		return dst
	}
	dst = appendParams(append(dst, ' '), p.Params)
	return appendExtension(dst, p)
}

func appendSingle(dst []byte, p *Part, extended bool) []byte {
	switch {
	case p.Kind == Opaque:
		dst = append(dst, `"application" "octet-stream" NIL`...)
	case p.Kind == Message && p.Type == nil:
		dst = append(dst, `"message" "rfc822" NIL`...)
	case p.Type == nil:
		dst = append(dst, `"text" "plain" (`+usASCII+`)`...)
	default:
		dst = appendType(dst, p)
	}
	dst = appendNString(append(dst, ' '), p.ID)
	dst = appendNString(append(dst, ' '), p.Description)
	if p.Encoding == nil {
		dst = append(dst, ` "7bit" `...)
	} else {
		dst = append(appendNString(append(dst, ' '), p.Encoding), ' ')
	}
	dst = appendInt(dst, p.BodyWire)
	switch p.Kind {
	case Text:
		dst = appendInt(append(dst, ' '), p.BodyLines)
	case Message:
		fields := p.Parts[0].Fields
		if len(dst) > maxStructure {
			fields = new(Header)
		}
		dst = AppendEnvelope(append(dst, ' '), fields)
		dst = AppendBody(append(dst, ' '), p.Parts[0], extended)
		dst = appendInt(append(dst, ' '), p.BodyLines)
	}
	if !extended {
		return dst
	}
	dst = appendNString(append(dst, ' '), p.MD5)
	return appendExtension(dst, p)
}

// appendType appends type, subtype and parameters as the message has them. A text without
// charset is in US-ASCII (RFC 2045 §5.2).
func appendType(dst []byte, p *Part) []byte {
	dst = appendNString(dst, p.Type)
	dst = appendNString(append(dst, ' '), p.Subtype)
	dst = append(dst, ' ')
	if p.Kind != Text || p.Param("charset") != nil {
		return appendParams(dst, p.Params)
	}
	if len(p.Params) == 0 {
		return append(dst, "("+usASCII+")"...)
	}
	dst = appendParams(dst, p.Params)
	return append(dst[:len(dst)-1], " "+usASCII+")"...)
}

// appendExtension appends disposition, language and location.
func appendExtension(dst []byte, p *Part) []byte {
	dst = append(dst, ' ')
	if p.Disposition == nil {
		dst = append(dst, "NIL"...)
	} else {
		dst = appendNString(append(dst, '('), p.Disposition)
		dst = append(appendParams(append(dst, ' '), p.DispositionParams), ')')
	}
	dst = append(dst, ' ')
	if len(p.Language) == 0 {
		dst = append(dst, "NIL"...)
	}
	for i, t := range p.Language {
		if i == 0 {
			dst = append(dst, '(')
		} else {
			dst = append(dst, ' ')
		}
		dst = appendNString(dst, t)
	}
	if len(p.Language) > 0 {
		dst = append(dst, ')')
	}
	return appendNString(append(dst, ' '), p.Location)
}
