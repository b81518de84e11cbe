package envelope

import "testing"

func TestFromExit(t *testing.T) {
	for st, want := range map[int]string{
		0: "delivered 2.0.0", 64: "deferred 4.3.5", 78: "deferred 4.3.5", 65: "failed 5.6.0", 67: "failed 5.1.1",
		68: "failed 5.1.2", 69: "failed 5.3.0", 70: "deferred 4.3.0", 71: "deferred 4.3.0", 74: "deferred 4.3.0",
		75: "deferred 4.3.0", 76: "deferred 4.3.0", 77: "failed 5.7.1", 1: "deferred 4.3.0", 100: "deferred 4.3.0",
		111: "deferred 4.3.0", -1: "deferred 4.3.0", 99: "deferred 4.3.0",
	} {
		s := FromExit(st)
		if got := string(s.Verdict) + " " + s.Code; got != want {
			t.Errorf("exit %d: %s, want %s", st, got, want)
		}
	}
}

func TestValidCode(t *testing.T) {
	for s, want := range map[string]bool{
		"5.1.1": true, "4.7.28": true, "2.0.0": true, "5.7.509": true, "3.1.1": false, "5.1": false,
		"5.1.": false, "5..1": false, "5.1.1.1": false, "5.01.1": false, "5.1.1000": false, "": false, "5.1.x": false,
	} {
		if ValidCode(s) != want {
			t.Errorf("ValidCode(%q) = %v", s, !want)
		}
	}
}
