package maildir

import "pennypost/internal/imapwire"

// EncodeMUTF7 writes a UTF-8 name in modified UTF-7 (RFC 3501 §5.1.3): on disk as in IMAP.
func EncodeMUTF7(name string) string { return imapwire.EncodeMUTF7(name) }

// DecodeMUTF7 reads a name in modified UTF-7. Only what EncodeMUTF7 writes is accepted, so that
// no two names on disk are one name to clients.
func DecodeMUTF7(s string) (string, bool) { return imapwire.DecodeMUTF7(s) }
