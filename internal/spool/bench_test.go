package spool

import (
	"testing"
)

func BenchmarkCreateCommit(b *testing.B) {
	s := testSpool(b, Options{})
	msg := pattern(4096)
	b.ReportAllocs()
	for b.Loop() {
		put(b, s, testEnvelope(), msg)
	}
}

func BenchmarkTake(b *testing.B) {
	s := testSpool(b, Options{})
	q := testQueue(b, s)
	msg := pattern(4096)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		id := put(b, s, testEnvelope(), msg)
		b.StartTimer()
		m, err := q.Take(id)
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		if err := q.Remove(id); err != nil {
			b.Fatal(err)
		}
	}
}
