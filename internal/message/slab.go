package message

// slab hands out pieces of larger arrays, and the same ones again after a reset.
type slab[T any] struct{ free, chunk []T }

const slabMax = 512

func (s *slab[T]) reset() {
	if len(s.chunk) > slabMax {
		s.chunk, s.free = nil, nil
	}
	clear(s.chunk[:len(s.chunk)-len(s.free)])
	s.free = s.chunk
}

// take returns an empty slice with room for n.
func (s *slab[T]) take(n int) []T {
	if n > len(s.free) {
		s.chunk = make([]T, max(n, min(2*len(s.chunk), slabMax), 8))
		s.free = s.chunk
	}
	t := s.free[0:0:n]
	s.free = s.free[n:]
	return t
}

func (s *slab[T]) one() *T { return &s.take(1)[:1][0] }
