package smtp

import (
	"net/netip"
	"testing"
)

func TestPeerInLogs(t *testing.T) {
	uid := 7
	for want, p := range map[string]Peer{
		"192.0.2.1:25": {Addr: netip.MustParseAddrPort("192.0.2.1:25"), UID: &uid},
		"uid:7":        {UID: &uid, Stdio: true},
		"stdio":        {Stdio: true},
		"unknown":      {},
	} {
		if got := p.String(); got != want {
			t.Errorf("%+v is %q, want %q", p, got, want)
		}
	}
}
