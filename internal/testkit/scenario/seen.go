package scenario

import (
	"encoding/json"
	"strings"
)

// Seen is the body of the test application's answers: the request as it was
// received.
type Seen struct {
	Name   string              `json:"name"`
	Method string              `json:"method"`
	Path   string              `json:"path"`
	Host   string              `json:"host"`
	Header map[string][]string `json:"header"`
	Body   string              `json:"body"`
	// Proto is the version of HTTP it was spoken to in.
	Proto string `json:"proto"`
	// Attempt counts the deliveries of this x-request-id to this process.
	Attempt int `json:"attempt"`
}

// ReadSeen fills in what the test application saw, if it was the one that
// answered. Body becomes the request body it received.
func (r *Result) ReadSeen() {
	var seen Seen
	if json.Unmarshal([]byte(r.Body), &seen) != nil || seen.Name == "" {
		return
	}
	r.From, r.Body = seen.Name, seen.Body
	r.SeenMethod, r.SeenPath, r.SeenHost, r.SeenProto = seen.Method, seen.Path, seen.Host, seen.Proto
	r.SeenHeader = LowerKeys(seen.Header)
}

// LowerKeys returns h with lower-case names.
func LowerKeys(h map[string][]string) map[string][]string {
	out := make(map[string][]string, len(h))
	for k, v := range h {
		out[strings.ToLower(k)] = append(out[strings.ToLower(k)], v...)
	}
	return out
}
