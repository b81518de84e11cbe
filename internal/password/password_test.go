package password

import (
	"errors"
	"strings"
	"testing"
)

// The hashes were made by doveadm pw, openssl passwd and libxcrypt; the password is "secret".
var peers = []string{
	"{PLAIN}secret",
	"{CLEARTEXT}secret",
	"{plain}secret",
	"{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$5/m2ZQKWJrd9Mb7HaOtqGQ$hn3WUePIIxSqI25112U+SlL4HEITXfgnAbfWJZ04w8E",
	"{ARGON2I}$argon2i$v=19$m=32768,t=4,p=1$Tt1w0rH9LaIELnrQDJvLTQ$PfiLSTqqY2KmUFQ1KIlhQYz3a5AwlDPl500x1g2J504",
	"{BLF-CRYPT}$2y$05$/tWuYCL8m.fo2cOJe46AJerbV0PIxdQTB18xQ7kH/bWC7uFLuHgPO",
	"{SHA512-CRYPT}$6$HSOEszVkDOFfHWVF$Y71b1SiNIbENKcNxS.n7Ow.Is9YJ0xgkA1ZRwx9KXZs5LaOOmhpwUYSNTmEFpPSrsADvfFvZP748Tf6Dm0GEx/",
	"$6$abcdefgh$ltjgWl6579NluT/Vi1nwEvcil.G5Nbc4NiXZaNGStk8PSwGfQv72N2CKPPrVACtLtip/cZ/1GM/O6IND4WQhG.",
	"{CRYPT}$5$abcdefgh$gruCpC7VkOTspMQTTSAR8mtlO9Upms.fwqE5y16JVM.",
	"{CRYPT}$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1",
	"{CRYPT}$y$j9T$abcdefghijkl$XFQnRmFDoRnfefa6tLCdzcaB9xoGhmmkRgfG1lm0pK1",
	"{SSHA}kI3R+/q4ypwWT+35OQ6esIUOTNrRrRqZ",
	"{SSHA.HEX}d3447b277403e96e54c321fbb2cc83285f3a5d81c22906e2",
	"{SSHA256}QyQf2W9EIuf+OrPfpmgYkgFFBp0B+03GDFmU9k2ZZCTeybXn",
	"{SSHA512}jT1h/jd3B7+ojUiHwpOZj3Tok7nTwg/fjGAkVbHP4eNze8h/aPzU217nLBr7rrYngSYZfvMDNq5Gz4Ibo7/oh95LYYk=",
	"{SHA256}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=",
	"{SHA512}vSsar3708Jvp9Szi2NWZZ02Bqp1qRCFpbcTZPdBhnWgs5WtNZKnvCXdhztmeD2cmW192CF5bDufKRpayrW/isg==",
	"{SMD5}zW9eYHivRQkMdQuy0L18437fzOc=",
	"{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
	"{PBKDF2}$1$KGs52wdEZDigiCv.$5000$4407d862964f051ed037cc97df95c49783bf0196",
	"{PLAIN-MD5}5ebe2294ecd0e0f08eab7690d2a6ee69",
	"{LDAP-MD5}Xr4ilOzQ4PCOq3aQ0qbuaQ==",
	"{MD5}$1$5bs8p3.3$4JxGMlmvbYeiSxSiV.Mu91",
	"{CLEAR}secret",
}

func TestVerify(t *testing.T) {
	for _, s := range peers {
		if ok, err := Verify(s, "secret"); !ok || err != nil {
			t.Errorf("%s: %v %v", s, ok, err)
		}
		for _, wrong := range []string{"", "Secret", "secret\x00x", strings.Repeat("x", 2000)} {
			if ok, err := Verify(s, wrong); ok || err != nil {
				t.Errorf("%s: %q: %v %v", s, wrong, ok, err)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	for _, s := range []string{
		"", "{PLAIN", "{NTLM}x", "{SSHA}!!", "{SSHA}c2hvcnQ=", "{PLAIN.XX}aa", "ab01234567890", "*", "!", "x",
		"{ARGON2ID}$argon2id$v=19$m=99999999,t=2,p=1$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5a2V5",
		"{ARGON2ID}$argon2id$v=19$m=1024,t=99,p=1$c2FsdHNhbHQ$a2V5a2V5a2V5a2V5a2V5",
		"{ARGON2ID}$argon2id$v=19$m=1024,t=1,p=1$c2FsdHNhbHQ$",
		"{BLF-CRYPT}$2y$31$/tWuYCL8m.fo2cOJe46AJerbV0PIxdQTB18xQ7kH/bWC7uFLuHgPO",
		"{PBKDF2}$1$salt$99999999$4407d862964f051ed037cc97df95c49783bf0196", "{PBKDF2}$1$salt$1$", "{PLAIN-MD5}5ebe",
		"{CRYPT}$6$rounds=999999999$abc$xyz", "{CRYPT}$y$jzT$abcdefghijkl$XFQ", "{CRYPT}$y$",
	} {
		if ok, err := Verify(s, "secret"); ok || !errors.Is(err, ErrScheme) {
			t.Errorf("%q: %v %v", s, ok, err)
		}
	}
}

func TestNew(t *testing.T) {
	for _, scheme := range Schemes() {
		s, err := New(scheme, "hunter2")
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := Verify(s, "hunter2"); !ok || err != nil {
			t.Errorf("%s: %v %v", s, ok, err)
		}
	}
	for _, c := range [][2]string{{"PLAIN", "a:b"}, {"PLAIN", ""}, {"PLAIN", "a\nb"}, {"PLAIN", " a"}, {"PLAIN", "a\t"}, {"DES", "x"}, {"BLF-CRYPT", strings.Repeat("x", 73)}} {
		if s, err := New(c[0], c[1]); err == nil {
			t.Errorf("%q became %q", c, s)
		}
	}
}

// Property: a stored password of any looks neither panics nor costs more than the limits allow.
func FuzzVerify(f *testing.F) {
	for _, s := range peers {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "m=") || strings.Contains(s, "$y$") || strings.Contains(s, "$2") || strings.Contains(s, "rounds") {
			if len(s) > 40 { // slow on purpose; the parsers run all the same
				_, _, _ = parseArgon2(s)
				return
			}
		}
		_, _ = Verify(s, "secret")
	})
}
