package auth

import (
	"encoding/json"
	"reflect"
	"testing"
)

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"op":"password","login":"alice","password":"secret","from":"192.0.2.1","want_ticket":true}`))
	f.Add([]byte(`{"op":"scram","mechanism":"SCRAM-SHA-256-PLUS","binding":{"type":"tls-exporter","data":"AAAA"},"response":"biwsbj1hLHI9Yg=="}`))
	f.Add([]byte(`{"op":"redeem","ticket":"X"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, from, err := parseRequest(b)
		if err != nil {
			return
		}
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, from2, err := parseRequest(out)
		if len(r.Response) == 0 { // left out when printed
			r.Response, again.Response = nil, nil
		}
		if err != nil || from2 != from || !reflect.DeepEqual(r, again) {
			t.Fatalf("%q is printed %q: %v", b, out, err)
		}
	})
}
