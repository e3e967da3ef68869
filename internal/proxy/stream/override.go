package stream

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// steering are the headers by which an application shapes its own requests, in
// addition to the two timeouts, which have interned names.
const (
	retryGRPCOn      = "x-envoy-retry-grpc-on"
	retriableCodes   = "x-envoy-retriable-status-codes"
	timeoutAltStatus = "x-envoy-upstream-rq-timeout-alt-response"
)

// grpcConditions are what x-envoy-retry-grpc-on can name; all else belongs to
// x-envoy-retry-on.
const grpcConditions = snapshot.RetryOnGRPCCancelled | snapshot.RetryOnGRPCDeadlineExceeded |
	snapshot.RetryOnGRPCInternal | snapshot.RetryOnGRPCResourceExhausted | snapshot.RetryOnGRPCUnavailable

// override takes what the application asks for its own request: timeouts and
// retries (Envoy: x-envoy-upstream-rq-timeout-ms and its like; Istio documents
// them as overrides per request). Only the application beside this proxy is
// believed, so only outbound: what comes over the network, at a gateway or
// inbound, is removed unread. What was read is removed too, so that it works
// once and not again at every hop.
func (x *Exchange) override() {
	h := x.head
	if !steers(h) {
		return
	}
	if x.rec.Direction == snapshot.Outbound && !x.edge {
		x.overrideTimeouts(h)
		x.overrideRetries(h)
	}
	for _, id := range [...]message.NameID{
		message.XEnvoyUpstreamRqTimeoutMs, message.XEnvoyUpstreamRqPerTryTimeoutMs,
		message.XEnvoyRetryOn, message.XEnvoyMaxRetries,
	} {
		h.Del(id)
	}
	for _, name := range [...]string{retryGRPCOn, retriableCodes, timeoutAltStatus} {
		h.DelName(name)
	}
}

// steers says in one pass that a head may hold a header of override: nearly
// none does.
func steers(h *message.Head) bool {
	for i := range h.Len() {
		switch id, name, _, _ := h.Field(i); id {
		case message.XEnvoyUpstreamRqTimeoutMs, message.XEnvoyUpstreamRqPerTryTimeoutMs,
			message.XEnvoyRetryOn, message.XEnvoyMaxRetries:
			return true
		case message.Other:
			if bytes.HasPrefix(name, []byte("x-envoy-")) {
				return true
			}
		}
	}
	return false
}

func (x *Exchange) overrideTimeouts(h *message.Head) {
	if d, ok := milliseconds(h.Get(message.XEnvoyUpstreamRqTimeoutMs)); ok {
		x.timeout, x.capped = d, false
	}
	if d, ok := milliseconds(h.Get(message.XEnvoyUpstreamRqPerTryTimeoutMs)); ok {
		x.perTry = d
	}
}

// overrideRetries adds conditions to those of the route, or makes a policy of
// one retry where the route has none; the number replaces the route's (Envoy:
// RetryStateImpl).
func (x *Exchange) overrideRetries(h *message.Head) {
	on, grpcOn, most := h.Get(message.XEnvoyRetryOn), h.GetName(retryGRPCOn), h.Get(message.XEnvoyMaxRetries)
	if on == nil && grpcOn == nil && (most == nil || x.retry == nil) {
		return
	}
	p := snapshot.RetryPolicy{Retries: 1}
	if x.retry != nil {
		p = *x.retry
	}
	http, codes := snapshot.ParseRetryOn(string(on))
	grpc, _ := snapshot.ParseRetryOn(string(grpcOn))
	p.On |= http&^grpcConditions | grpc&grpcConditions
	p.StatusCodes = slices.Concat(p.StatusCodes, codes, statusCodes(string(h.GetName(retriableCodes))))
	if n, err := strconv.ParseUint(string(most), 10, 32); err == nil {
		p.Retries = uint32(n)
	}
	x.retry, x.left = &p, p.Retries
}

// statusCodes reads a list of numbers; what is no status is skipped.
func statusCodes(list string) (codes []int) {
	for word := range strings.SplitSeq(list, ",") {
		if n, err := strconv.Atoi(strings.TrimSpace(word)); err == nil && n >= 100 && n <= 599 {
			codes = append(codes, n)
		}
	}
	return codes
}

// milliseconds reads a header of Envoy's that sets a timeout.
func milliseconds(v []byte) (time.Duration, bool) {
	if len(v) == 0 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(v), 10, 32)
	return time.Duration(n) * time.Millisecond, err == nil
}
