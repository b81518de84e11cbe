// Package password checks and makes stored passwords in Dovecot's {SCHEME} notation. It hides
// the hash libraries, so that only programs that check passwords link them.
package password

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// MaxLength bounds a password in octets: longer ones are refused before any hashing.
const MaxLength = 1024

// DefaultScheme is what new passwords get.
const DefaultScheme = "ARGON2ID"

// ErrScheme is wrapped by errors about a stored password that cannot be used: an unknown
// scheme, a broken hash, or a cost beyond what this program is willing to spend.
var ErrScheme = errors.New("stored password cannot be used")

// Schemes lists the names New accepts.
func Schemes() []string {
	return []string{"ARGON2ID", "BLF-CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "PLAIN"}
}

// Verify tells whether password is the one stored. The comparison takes constant time. An
// error means that stored cannot be checked, whatever the password.
func Verify(stored, password string) (bool, error) {
	scheme, data, err := split(stored)
	if err != nil {
		return false, err
	}
	// bcrypt and crypt(3) stop at NUL: "secret\x00x" would pass for "secret".
	if password == "" || len(password) > MaxLength || strings.IndexByte(password, 0) >= 0 {
		return false, nil
	}
	switch scheme {
	case "PLAIN", "CLEARTEXT", "CLEAR":
		return equal([]byte(data), []byte(password)), nil
	case "ARGON2ID", "ARGON2I":
		return verifyArgon2(data, password)
	case "CRYPT", "BLF-CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "MD5-CRYPT", "MD5":
		return verifyCrypt(data, password)
	case "PBKDF2":
		return verifyPBKDF2(data, password)
	}
	return verifyDigest(scheme, data, password)
}

// split takes {SCHEME} and its encoding suffix off. Without a scheme the rest is crypt(3), as
// in Dovecot's passwd-file.
func split(stored string) (scheme, data string, err error) {
	if stored == "" {
		return "", "", fmt.Errorf("%w: it is empty", ErrScheme)
	}
	if stored[0] != '{' {
		return "CRYPT", stored, nil
	}
	scheme, data, ok := strings.Cut(stored[1:], "}")
	if !ok {
		return "", "", fmt.Errorf("%w: '}' missing", ErrScheme)
	}
	scheme, enc, _ := strings.Cut(strings.ToUpper(scheme), ".")
	var raw []byte
	switch enc {
	case "":
		return scheme, data, nil
	case "HEX":
		raw, err = hex.DecodeString(data)
	case "B64", "BASE64":
		raw, err = base64.StdEncoding.DecodeString(data)
	default:
		err = errors.New("unknown encoding")
	}
	if err != nil {
		return "", "", fmt.Errorf("%w: {%s.%s}: %v", ErrScheme, scheme, enc, err)
	}
	if isDigest(scheme) {
		return scheme, base64.StdEncoding.EncodeToString(raw), nil
	}
	return scheme, string(raw), nil
}

func isDigest(scheme string) bool {
	h, _ := digestOf(scheme)
	return h != nil
}

// digestOf returns the hash of the plain and salted digest schemes.
func digestOf(scheme string) (newHash func() hash.Hash, salted bool) {
	switch scheme {
	case "SHA", "SHA1":
		return sha1.New, false
	case "SSHA":
		return sha1.New, true
	case "SHA256":
		return sha256.New, false
	case "SSHA256":
		return sha256.New, true
	case "SHA512":
		return sha512.New, false
	case "SSHA512":
		return sha512.New, true
	case "PLAIN-MD5", "LDAP-MD5":
		return md5.New, false
	case "SMD5":
		return md5.New, true
	}
	return nil, false
}

func verifyDigest(scheme, data, password string) (bool, error) {
	newHash, salted := digestOf(scheme)
	if newHash == nil {
		return false, fmt.Errorf("%w: scheme {%s} is unknown", ErrScheme, scheme)
	}
	h := newHash()
	raw, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		// Dovecot writes the unsalted ones in hex too; their lengths differ.
		raw, err = hex.DecodeString(data)
	} else if len(raw) != h.Size() && len(data) == 2*h.Size() {
		if r, e := hex.DecodeString(data); e == nil {
			raw = r
		}
	}
	if err != nil || len(raw) < h.Size() || !salted && len(raw) != h.Size() || len(raw) > h.Size()+64 {
		return false, fmt.Errorf("%w: broken {%s}", ErrScheme, scheme)
	}
	h.Write([]byte(password))
	h.Write(raw[h.Size():])
	return equal(raw[:h.Size()], h.Sum(nil)), nil
}

func equal(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

// New hashes password by the named scheme, with the costs this program recommends.
func New(scheme, password string) (string, error) {
	if password == "" || len(password) > MaxLength || strings.ContainsAny(password, "\x00\r\n") {
		return "", errors.New("password is empty, over 1024 octets, or holds a line end or NUL")
	}
	scheme = strings.ToUpper(scheme)
	switch scheme {
	case "ARGON2ID", "":
		salt := make([]byte, 16)
		rand.Read(salt)
		p := argonParams{memory: argonMemory, time: argonTime, threads: argonThreads, salt: salt}
		p.key = argon2.IDKey([]byte(password), salt, p.time, p.memory, p.threads, 32)
		return "{ARGON2ID}" + p.String(), nil
	case "BLF-CRYPT":
		if len(password) > 72 {
			return "", errors.New("BLF-CRYPT takes passwords of up to 72 octets")
		}
		b, err := bcrypt.GenerateFromPassword([]byte(password), 12)
		if err != nil {
			return "", err
		}
		return "{BLF-CRYPT}" + string(b), nil
	case "SHA512-CRYPT", "SHA256-CRYPT":
		return "{" + scheme + "}" + newSHACrypt(scheme == "SHA512-CRYPT", password), nil
	case "PLAIN":
		if strings.Contains(password, ":") {
			return "", errors.New("a PLAIN password cannot hold a colon in this file")
		}
		if strings.Trim(password, " \t\v\f") != password {
			return "", errors.New("a PLAIN password cannot begin or end with a space in this file")
		}
		return "{PLAIN}" + password, nil
	}
	return "", fmt.Errorf("scheme %s is not one of %s", scheme, strings.Join(Schemes(), " "))
}

// Plain returns the password itself where it is stored as it is, for the mechanisms that need it.
func Plain(stored string) (string, bool) {
	scheme, data, err := split(stored)
	return data, err == nil && (scheme == "PLAIN" || scheme == "CLEARTEXT" || scheme == "CLEAR")
}
