package smtp

import "time"

// Patient is implemented by a Session that wants to see whether its client can wait. RFC 5321
// §3.1 makes the server speak first; programs that only push mail out do not listen.
type Patient interface {
	// GreetDelay is how long the greeting is held back; 0 is not at all.
	GreetDelay() time.Duration
	// Early is called when the client spoke before it. An error refuses the client.
	Early() error
}

// hold waits before the greeting. It tells whether the greeting may follow.
func (c *session) hold() bool {
	p, ok := c.be.(Patient)
	if !ok || c.verb != "" { // XCLIENT begins a session anew, and nobody talks out of turn
		return true
	}
	d := p.GreetDelay()
	if d <= 0 {
		return true
	}
	c.in.deadline = c.srv.now().Add(d)
	err := c.in.fill()
	c.in.deadline = time.Time{}
	if err != nil {
		return true // it waited; or it is gone, or we stop: the next read sees that again
	}
	if err := p.Early(); err != nil {
		a := *answerFor(err)
		a.Close = true
		c.answer(&a)
		return false
	}
	return true
}
