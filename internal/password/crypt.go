package password

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/go-crypt/x/crypt"
	"github.com/go-crypt/x/yescrypt"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// Costs of new argon2id hashes: OWASP's second recommendation.
const (
	argonMemory  = 19456 // KiB
	argonTime    = 2
	argonThreads = 1
)

// What a hash in the file may ask of us at most: about a second and 256 MiB.
const (
	maxArgonMemory  = 256 << 10 // KiB
	maxArgonTime    = 16
	maxArgonThreads = 16
	maxBcryptCost   = 16
	maxSHARounds    = 1_000_000
	maxPBKDF2       = 1_000_000
)

type argonParams struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func (p argonParams) String() string {
	e := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", p.memory, p.time, p.threads,
		e.EncodeToString(p.salt), e.EncodeToString(p.key))
}

// parseArgon2 reads $argon2id$v=19$m=19456,t=2,p=1$salt$key.
func parseArgon2(s string) (variant string, p argonParams, err error) {
	bad := func(why string) (string, argonParams, error) {
		return "", argonParams{}, fmt.Errorf("%w: argon2: %s", ErrScheme, why)
	}
	f := strings.Split(s, "$")
	if len(f) != 6 || f[0] != "" || f[1] != "argon2id" && f[1] != "argon2i" || f[2] != "v=19" {
		return bad("not of the form $argon2id$v=19$m=,t=,p=$salt$key")
	}
	for _, kv := range strings.Split(f[3], ",") {
		k, v, _ := strings.Cut(kv, "=")
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return bad("parameter " + strconv.Quote(kv))
		}
		switch {
		case k == "m" && n <= maxArgonMemory:
			p.memory = uint32(n)
		case k == "t" && n <= maxArgonTime:
			p.time = uint32(n)
		case k == "p" && n <= maxArgonThreads:
			p.threads = uint8(n)
		default:
			return bad("parameter " + strconv.Quote(kv) + " is unknown or beyond the limit")
		}
	}
	var e1, e2 error
	p.salt, e1 = base64.RawStdEncoding.DecodeString(f[4])
	p.key, e2 = base64.RawStdEncoding.DecodeString(f[5])
	if e1 != nil || e2 != nil || p.memory == 0 || p.time == 0 || p.threads == 0 ||
		len(p.salt) > 128 || len(p.key) < 16 || len(p.key) > 128 {
		return bad("broken salt, key or parameters")
	}
	return f[1], p, nil
}

func verifyArgon2(data, password string) (bool, error) {
	variant, p, err := parseArgon2(data)
	if err != nil {
		return false, err
	}
	kdf := argon2.IDKey
	if variant == "argon2i" {
		kdf = argon2.Key
	}
	return equal(p.key, kdf([]byte(password), p.salt, p.time, p.memory, p.threads, uint32(len(p.key)))), nil
}

// verifyCrypt takes what crypt(3) of today's systems writes: bcrypt, SHA-crypt, MD5-crypt,
// yescrypt. Traditional DES hashes are refused; eight significant characters protect nobody.
func verifyCrypt(data, password string) (bool, error) {
	switch {
	case strings.HasPrefix(data, "$2"):
		cost, err := bcrypt.Cost([]byte(data))
		if err != nil || cost > maxBcryptCost {
			return false, fmt.Errorf("%w: bcrypt: broken, or cost over %d", ErrScheme, maxBcryptCost)
		}
		// bcrypt uses 72 octets; the peers that wrote the hash cut there without a word.
		b := []byte(password)
		return bcrypt.CompareHashAndPassword([]byte(data), b[:min(len(b), 72)]) == nil, nil
	case strings.HasPrefix(data, "$5$"):
		return verifySHACrypt(sha256.New, data, password)
	case strings.HasPrefix(data, "$6$"):
		return verifySHACrypt(sha512.New, data, password)
	case strings.HasPrefix(data, "$1$"):
		salt, key, ok := strings.Cut(data[3:], "$")
		if !ok || len(salt) > 8 || len(key) != 22 {
			return false, fmt.Errorf("%w: broken MD5-crypt", ErrScheme)
		}
		return equal([]byte(key), crypt.KeyMD5Crypt([]byte(password), []byte(salt))), nil
	case strings.HasPrefix(data, "$y$"):
		return verifyYescrypt(data, password)
	case strings.HasPrefix(data, "$argon2"):
		return verifyArgon2(data, password)
	}
	return false, fmt.Errorf("%w: unknown form of crypt(3) hash", ErrScheme)
}

func verifyYescrypt(data, password string) (bool, error) {
	if len(data) > 256 || strings.Count(data, "$") != 4 {
		return false, fmt.Errorf("%w: broken yescrypt", ErrScheme)
	}
	if b := data[4:]; len(b) < 3 || itoa64(b[0]) < 0 || itoa64(b[0])+1+7+log2(itoa64(b[1])+1) > 28 {
		return false, fmt.Errorf("%w: yescrypt: broken, or needs over 256 MiB", ErrScheme)
	}
	got, err := yescrypt.Hash([]byte(password), []byte(data))
	if err != nil {
		return false, fmt.Errorf("%w: %v", ErrScheme, err)
	}
	return equal([]byte(data), got), nil
}

// itoa64 is the value of c in crypt(3)'s alphabet, or -1.
func itoa64(c byte) int {
	return strings.IndexByte("./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", c)
}

func log2(n int) int {
	l := 0
	for ; n > 1; n = (n + 1) / 2 {
		l++
	}
	return l
}

const shaDefaultRounds = 5000

// verifySHACrypt checks $5$ and $6$ hashes: [rounds=N$]salt$key.
func verifySHACrypt(h func() hash.Hash, data, password string) (bool, error) {
	rest, rounds := data[3:], shaDefaultRounds
	if strings.HasPrefix(rest, "rounds=") {
		n, r, ok := strings.Cut(rest[7:], "$")
		v, err := strconv.Atoi(n)
		if !ok || err != nil || v < 1 || v > maxSHARounds {
			return false, fmt.Errorf("%w: SHA-crypt: rounds=%q is broken or over %d", ErrScheme, n, maxSHARounds)
		}
		rest, rounds = r, max(v, 1000)
	}
	salt, key, ok := strings.Cut(rest, "$")
	if !ok || len(salt) > 16 {
		return false, fmt.Errorf("%w: broken SHA-crypt", ErrScheme)
	}
	return equal([]byte(key), crypt.KeySHACrypt(h, []byte(password), []byte(salt), rounds)), nil
}

func newSHACrypt(long bool, password string) string {
	const rounds = 100_000
	salt := strings.ToLower(rand.Text())[:16]
	h, id := sha256.New, "5"
	if long {
		h, id = sha512.New, "6"
	}
	return fmt.Sprintf("$%s$rounds=%d$%s$%s", id, rounds, salt, crypt.KeySHACrypt(h, []byte(password), []byte(salt), rounds))
}

// verifyPBKDF2 checks Dovecot's {PBKDF2}: $1$salt$rounds$key, with HMAC-SHA-1 and the key in hex.
func verifyPBKDF2(data, password string) (bool, error) {
	f := strings.Split(data, "$")
	if len(f) != 5 || f[0] != "" || f[1] != "1" {
		return false, fmt.Errorf("%w: PBKDF2: not of the form $1$salt$rounds$key", ErrScheme)
	}
	rounds, err := strconv.Atoi(f[3])
	key, kerr := hex.DecodeString(f[4])
	if err != nil || kerr != nil || rounds < 1 || rounds > maxPBKDF2 || len(key) != sha1.Size {
		return false, fmt.Errorf("%w: PBKDF2: broken key, or rounds broken or over %d", ErrScheme, maxPBKDF2)
	}
	got, err := pbkdf2.Key(sha1.New, password, []byte(f[2]), rounds, len(key))
	if err != nil {
		return false, fmt.Errorf("%w: PBKDF2: %v", ErrScheme, err)
	}
	return equal(key, got), nil
}
