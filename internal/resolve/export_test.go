package resolve

// ServersOf are those that a resolver asks.
func ServersOf(r *Resolver) []string { return r.o.Servers }
