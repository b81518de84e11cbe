package service

import (
	"fmt"
	"sync/atomic"
	"testing"

	"pennypost/internal/accounts"
	"pennypost/internal/auth"
	"pennypost/internal/password"
)

// BenchmarkLogin compares logins, none of them remembered, with the bare hash: what is lost is
// the cost of the limits, the line and the socket.
func BenchmarkLogin(b *testing.B) {
	for _, scheme := range []string{"PLAIN", "ARGON2ID"} {
		stored, err := password.New(scheme, "secret")
		if err != nil {
			b.Fatal(err)
		}
		secrets := "alice@example.test:" + stored + "\n"
		b.Run(scheme+"/hash", func(b *testing.B) {
			sec := accounts.Secret{Hash: stored}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if ok, err := check(&sec, "secret"); !ok || err != nil {
						b.Error(ok, err)
					}
				}
			})
		})
		for _, where := range []string{"direct", "shared", "socket", "remembered"} {
			b.Run(scheme+"/"+where, func(b *testing.B) {
				r := newRig(b, secrets, func(o *Options) {
					if where != "remembered" {
						o.Keep = -1
					}
					if where == "shared" {
						o.State = b.TempDir() + "/guesses"
					}
				})
				var c auth.Checker = r.Service
				if where == "socket" || where == "remembered" {
					c = r.socket(b, false)
				}
				b.SetParallelism(4)
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := c.Password(ctxTODO, "alice", "secret", home); err != nil {
							b.Error(err)
						}
					}
				})
			})
		}
	}
}

// BenchmarkGuess is what a wrong password costs beside its hash, each from another network.
func BenchmarkGuess(b *testing.B) {
	for _, where := range []string{"memory", "file"} {
		b.Run(where, func(b *testing.B) {
			r := newRig(b, files, func(o *Options) {
				if where == "file" {
					o.State = b.TempDir() + "/guesses"
				}
			})
			var n atomic.Int64
			for b.Loop() {
				i := n.Add(1)
				g := guess{account: fmt.Sprint(i), from: network(home)}
				_, _ = r.limits.begin(&g) // put off or not, it costs the same
				r.limits.failed(g, [16]byte{byte(i)})
			}
		})
	}
}
