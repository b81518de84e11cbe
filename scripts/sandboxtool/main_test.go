package main

import (
	"crypto/tls"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args  string
		dir   string
		given bool
		bad   bool
	}{
		{args: "", bad: true},
		{args: "/d", dir: "/d"},
		{args: "/d --domain a.test --domain b.test --user ann:pw", dir: "/d", given: true},
		{args: "--mode inetd /d --mx-port 2525", dir: "/d", given: true},
		{args: "/d /e", bad: true},
		{args: "/d --mode xinetd", bad: true},
		{args: "/d --user ann", bad: true},
		{args: "/d --route a.test", bad: true},
		{args: "/d --route a.test=host", bad: true},
		{args: "/d --route a.test=host:25", dir: "/d", given: true},
		{args: "/d --smarthost u:p@ss@host:587", dir: "/d", given: true},
		{args: "/d --smarthost host", bad: true},
		{args: "/d --resolver 127.0.0.1", bad: true},
		{args: "/d --host here", bad: true},
		{args: "/d --nonsense", bad: true},
	} {
		dir, _, given, err := parse(strings.Fields(c.args))
		if (err != nil) != c.bad || err == nil && (dir != c.dir || given != c.given) {
			t.Errorf("%q: dir %q, given %v, err %v", c.args, dir, given, err)
		}
		if err != nil && !errors.Is(err, errUsage) {
			t.Errorf("%q: %v is no usage error", c.args, err)
		}
	}
}

func TestOptions(t *testing.T) {
	o := Options{Smarthost: "u:p@ss@host:587", Domains: []string{"a.test", "b.test"}, Users: []string{"ann:x:y", "bob@b.test:z"}}
	if auth, hp := o.smarthost(); auth != "u:p@ss" || hp != "host:587" {
		t.Errorf("smarthost: %q %q", auth, hp)
	}
	addrs, pws := o.addresses()
	if want := []string{"ann@a.test", "ann@b.test", "bob@b.test"}; !reflect.DeepEqual(addrs, want) {
		t.Errorf("addresses: %q, want %q", addrs, want)
	}
	if want := []string{"x:y", "x:y", "z"}; !reflect.DeepEqual(pws, want) {
		t.Errorf("passwords: %q, want %q", pws, want)
	}
}

// What the env file says is what a shell reads, whatever is in a name.
func TestEnvIsShell(t *testing.T) {
	dir := t.TempDir()
	in := &instance{dir: dir, bin: "/it's a $HOME/`x`", Ports: map[string]int{"mx": 25}, Opt: Options{Host: "127.0.0.1"}}
	if err := in.writeEnv(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", `. "$0"; printf %s "$PP_BIN"`, filepath.Join(dir, "env")).Output()
	if err != nil || string(out) != in.bin {
		t.Errorf("PP_BIN is %q, want %q (%v)", out, in.bin, err)
	}
}

func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := certificates(dir, []string{"localhost", "127.0.0.1", "mx.a.test"}); err != nil {
		t.Fatal(err)
	}
	ca, cert := read("ca.pem"), read("cert.pem")
	if err := certificates(dir, []string{"localhost", "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if read("ca.pem") != ca || read("cert.pem") != cert {
		t.Error("a restart with names that are covered changed the certificates")
	}
	if err := certificates(dir, []string{"localhost", "b.test"}); err != nil {
		t.Fatal(err)
	}
	if read("ca.pem") != ca {
		t.Error("new names changed the CA")
	}
	if read("cert.pem") == cert {
		t.Error("new names did not change the certificate")
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")); err != nil {
		t.Error(err)
	}
}
