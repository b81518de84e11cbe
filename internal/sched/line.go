package sched

// line is the queue of a next hop. A higher priority goes first (RFC 6710 §5.1); within one it
// is first come, first served.
type line struct {
	usual fifo[item] // priority 0: nearly all mail
	other [18]*fifo[item]
	n     int // items in other
}

// lane is the fifo of a priority.
func (l *line) lane(prio int8) *fifo[item] {
	if prio == 0 {
		return &l.usual
	}
	i := int(prio) + 9
	if prio > 0 {
		i--
	}
	if l.other[i] == nil {
		l.other[i] = new(fifo[item])
	}
	return l.other[i]
}

func (l *line) len() int { return l.usual.len() + l.n }

func (l *line) push(i item, prio int8) {
	if prio != 0 {
		l.n++
	}
	l.lane(prio).push(i)
}

func (l *line) pushFront(i item, prio int8) {
	if prio != 0 {
		l.n++
	}
	l.lane(prio).pushFront(i)
}

// pop takes the first item out; there must be one.
func (l *line) pop() item {
	for i := len(l.other) - 1; l.n > 0 && i >= 0; i-- {
		if i == 8 && l.usual.len() > 0 {
			break // what is left in other is below 0
		}
		if f := l.other[i]; f != nil && f.len() > 0 {
			l.n--
			return f.pop()
		}
	}
	return l.usual.pop()
}

// waits tells whether anything is in line at the hop.
func (h *hop) waits() bool { return h.urgent.len() > 0 || h.queue.len() > 0 }

// pop takes what is next at the hop out of its queues.
func (h *hop) pop() item {
	if h.urgent.len() > 0 {
		return h.urgent.pop()
	}
	return h.queue.pop()
}
