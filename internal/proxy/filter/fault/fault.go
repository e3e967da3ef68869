// Package fault decides whether a request is delayed or aborted on purpose. It
// is pure: the random draws are arguments, and the request path does the
// waiting and answering.
package fault

import (
	"time"

	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Decision is what happens to one request. The delay comes first, then the
// abort, as in Envoy.
type Decision struct {
	Delay time.Duration
	// Status is the HTTP status of an abort, 0 for none. GRPCStatus is set
	// instead for a gRPC abort, -1 for none.
	Status     int
	GRPCStatus int
}

// Abort says whether the request is answered here.
func (d Decision) Abort() bool { return d.Status != 0 || d.GRPCStatus >= 0 }

// Decide draws for one request. The two numbers are independent random values.
func Decide(f *snapshot.Fault, delay, abort uint64) Decision {
	d := Decision{GRPCStatus: -1}
	if f == nil {
		return d
	}
	if f.Delay > 0 && delay%1e6 < uint64(f.DelayPerMillion) {
		d.Delay = f.Delay
	}
	if abort%1e6 >= uint64(f.AbortPerMillion) {
		return d
	}
	if f.AbortStatus != 0 {
		d.Status = f.AbortStatus
	} else if f.AbortGRPCStatus >= 0 {
		d.GRPCStatus = f.AbortGRPCStatus
	}
	return d
}
