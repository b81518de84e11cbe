package config

import (
	"strings"

	"pennypost/internal/envelope"
)

// route checks one [[route]]: what it matches and where it leads.
func (k *checker) route(i int, r Route) {
	switch {
	case r.Match == "":
		k.bad("route.match", i, "missing: an address, a domain, \"*.domain\" or \"*\"")
	case r.Match == "*":
	case strings.Contains(r.Match, "@"):
		k.address("route.match", i, r.Match)
	default:
		k.domain("route.match", i, strings.TrimPrefix(r.Match, "*."))
	}
	switch {
	case r.To == "" && r.Worker == "":
		k.bad("route.to", i, "the route for %q has neither to nor worker", r.Match)
	case r.To != "" && r.Worker != "":
		k.bad("route.to", i, "the route for %q has both to and worker", r.Match)
	case r.To != "":
		k.routeTo(i, r.To)
	}
	k.oneOf("route.tls", i, r.TLS, tlsWords()...)
	k.retry("route.retry", i, r.Retry)
}

func (k *checker) routeTo(i int, to string) {
	if to == "local" {
		return
	}
	kind, rest, found := strings.Cut(to, ":")
	switch {
	case found && kind == "error":
		code, text, _ := strings.Cut(rest, " ")
		if !envelope.ValidCode(code) || code[0] == '2' || strings.TrimSpace(text) == "" {
			k.bad("route.to", i, "%q: write \"error:5.1.1 why\", with a status code of RFC 3463 and a sentence", to)
		}
	case found && kind == "mx":
		k.domain("route.to", i, rest)
	case found && kind == "lmtp":
		if strings.HasPrefix(rest, "/") {
			return
		}
		if err := hostPort(rest, -1); err != nil {
			k.bad("route.to", i, "%v", err)
		}
	case strings.Contains(to, "@"):
		k.bad("route.to", i, "%q: a route names a host, not an address (passwords stand in the file that auth names)", to)
	default:
		if err := hostPort(to, 25); err != nil {
			k.bad("route.to", i, "%v; other forms are lmtp:, mx:, local and error:", err)
		}
	}
}
