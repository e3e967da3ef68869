// Package cors answers preflight requests and adds the access-control headers
// to responses, as Envoy's CORS filter does. It is pure.
package cors

import (
	"lateen.dev/lateen/internal/proxy/filter"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Decision says how one request is treated.
type Decision struct {
	// Verdict is Reply for a preflight request that is answered here with 200;
	// Allowed says whether that answer grants anything.
	Verdict filter.Verdict
	Allowed bool
}

// Request looks at a request that has a CORS policy.
func Request(c *snapshot.CORS, h *message.Head) Decision {
	origin := h.Get(message.Origin)
	if len(origin) == 0 {
		return Decision{}
	}
	allowed := false
	for i := range c.AllowOrigins {
		if c.AllowOrigins[i].Match(origin) {
			allowed = true
			break
		}
	}
	preflight := string(h.Method()) == "OPTIONS" && len(h.GetName("access-control-request-method")) > 0
	switch {
	case preflight && (allowed || !c.ForwardNotMatchingPreflights):
		return Decision{Verdict: filter.Reply, Allowed: allowed}
	default:
		return Decision{Allowed: allowed}
	}
}

// Preflight fills the answer to a preflight request from an allowed origin.
func Preflight(c *snapshot.CORS, origin []byte, reply *message.Head) {
	common(c, origin, reply)
	set(reply, "access-control-allow-methods", c.AllowMethods)
	set(reply, "access-control-allow-headers", c.AllowHeaders)
	set(reply, "access-control-max-age", c.MaxAge)
}

// Response adds the headers to a response for an allowed origin.
func Response(c *snapshot.CORS, origin []byte, reply *message.Head) {
	common(c, origin, reply)
	set(reply, "access-control-expose-headers", c.ExposeHeaders)
}

func common(c *snapshot.CORS, origin []byte, reply *message.Head) {
	reply.DelName("access-control-allow-origin")
	reply.AddName([]byte("access-control-allow-origin"), origin)
	if c.AllowCredentials {
		reply.SetName("access-control-allow-credentials", "true")
	}
}

func set(h *message.Head, name, value string) {
	if value != "" {
		h.SetName(name, value)
	}
}
