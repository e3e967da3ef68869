package stream

import (
	"strconv"
	"time"

	"lateen.dev/lateen/internal/proxy/filter"
	"lateen.dev/lateen/internal/proxy/filter/authz"
	"lateen.dev/lateen/internal/proxy/filter/cors"
	"lateen.dev/lateen/internal/proxy/filter/fault"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// OnHead implements message.Receiver. It is the request path: each step either
// ends the exchange with a reply and says so, or hands on to the next.
func (x *Exchange) OnHead(h *message.Head, end bool) {
	x.head = h
	x.armIdle()
	if !x.checkHead(end) {
		return
	}
	x.identify()
	x.matchRoute()
	if end {
		x.requestComplete()
	}
	x.runFilters()
}

// checkHead refuses what has no single meaning and brings host and path into
// their one form, which routing, policy and the upstream all see.
func (x *Exchange) checkHead(end bool) bool {
	h, m := x.head, x.site.Manager
	if end {
		x.reqEnded = true
	}
	x.rec.Request = h
	x.classify()
	host, changed, ok := normalizeHost(h.Authority())
	if !ok {
		x.reply(400, 0, "invalid_host", "")
		return false
	}
	if changed {
		h.SetAuthority(host)
	}
	x.env.buf = x.env.buf[:0]
	path, result := normalizePath(x.env.buf, h.Path(), pathRules{m.NormalizePath, m.MergeSlashes, m.EscapedSlashes})
	switch result {
	case pathBad:
		x.reply(400, 0, "path_normalization_failed", "")
		return false
	case pathChanged:
		h.SetPath(path)
		x.env.buf = path
	case pathRedirect:
		h.SetPath(path)
		x.beginReply(307)
		x.respHead.Add(message.Location, path)
		x.sendReply(0, "path_normalization_failed", nil)
		return false
	}
	return true
}

// classify notes what kind of request this is. An Upgrade field means that the
// client really asks to switch: codecs drop it otherwise, together with
// everything that concerns one connection only.
func (x *Exchange) classify() {
	h := x.head
	x.upgrade = h.Has(message.Upgrade) || string(h.Method()) == "CONNECT"
	x.grpc = isGRPC(h.Get(message.ContentType))
}

// identify makes the request say who it comes from: request id and trace
// context, forwarded address and protocol, client certificate.
func (x *Exchange) identify() {
	h, m := x.head, x.site.Manager
	x.edge = m.UseRemoteAddress
	if x.edge {
		cleanEdge(h)
	}
	x.forwardedFor()
	x.forwardedProto()
	x.clientCert()
	x.readPeer()
	x.rec.Trace = record.Begin(h, record.Input{
		Tracing: m.Tracing, Direction: x.rec.Direction, Edge: x.edge,
		PreserveRequestID: m.PreserveRequestID, Rand: x.env.Rand,
	})
}

// matchRoute finds virtual host and route. Not finding one is answered after
// the filters, as in Envoy: who may not ask learns nothing about routes.
func (x *Exchange) matchRoute() {
	table := x.site.Manager.Routes
	if table == nil {
		return
	}
	vh := table.VirtualHost(x.head.Authority())
	if vh == nil {
		return
	}
	x.rec.VirtualHost = vh
	x.rec.Decider = vh.Origin
	r := vh.Match(x.head, x.env.Rand.Uint64(), &x.env.scratch)
	if r == nil {
		return
	}
	x.rec.Route = r
	x.rec.Decider = r.Origin
	x.retry = r.Retry
	if x.retry == nil {
		x.retry = vh.Retry
	}
	x.setTimeouts(r)
}

// setTimeouts takes the route's timeouts and retries and what the request asks for.
func (x *Exchange) setTimeouts(r *snapshot.Route) {
	h := x.head
	x.timeout = r.Timeout
	if r.IdleTimeout > 0 {
		x.idleFor = r.IdleTimeout
		x.armIdle()
	}
	if x.retry != nil {
		x.perTry = x.retry.PerTryTimeout
		x.left = x.retry.Retries
	}
	if r.GRPCTimeoutMax != nil && x.grpc {
		if d, ok := parseGRPCTimeout(h.Get(message.GRPCTimeout)); ok {
			if *r.GRPCTimeoutMax > 0 {
				d = min(d, *r.GRPCTimeoutMax)
			}
			x.timeout, x.capped = d, true
		}
	}
	x.override()
	if x.timeout > 0 && x.perTry >= x.timeout {
		x.perTry = 0 // the whole timeout comes first
	}
}

// runFilters runs the request filters from where they stand. A filter that has
// to wait leaves; whatever it waits for calls runFilters again.
func (x *Exchange) runFilters() {
	filters := x.site.Manager.Filters
	for x.filterAt < len(filters) {
		f := &filters[x.filterAt]
		x.filterAt++
		var v filter.Verdict
		switch {
		case f.RBAC != nil:
			v = x.authorize(f)
		case f.Fault != nil:
			v = x.injectFault(f)
		case f.CORS != nil:
			v = x.checkCORS(f)
		}
		if v != filter.Continue {
			return
		}
	}
	x.dispatch()
}

// authorize applies one RBAC filter, or what the route puts in its place.
func (x *Exchange) authorize(f *snapshot.HTTPFilter) filter.Verdict {
	rbac := f.RBAC
	if r := x.rec.Route; r != nil && r.RBAC != nil {
		if own, ok := r.RBAC[f.Name]; ok {
			rbac = own
		}
	}
	s := snapshot.Subject{Head: x.head, Conn: x.rec.Conn, Remote: x.remote}
	x.rec.DryRun = authz.DryRun(rbac, &s, x.rec.DryRun)
	res := authz.Check(rbac, &s)
	if res.Verdict == filter.Continue {
		return res.Verdict
	}
	x.rec.Decider = res.Origin
	if res.Policy != nil {
		x.rec.Policy = res.Policy.Name
	}
	x.reply(403, 0, res.Details, filter.BodyDenied)
	return res.Verdict
}

// injectFault delays or aborts a share of requests.
func (x *Exchange) injectFault(f *snapshot.HTTPFilter) filter.Verdict {
	config := f.Fault
	if r := x.rec.Route; r != nil && r.Fault != nil {
		config = r.Fault
	}
	d := fault.Decide(config, x.env.Rand.Uint64(), x.env.Rand.Uint64())
	if d.Delay > 0 {
		x.rec.Flags |= record.FlagDI
		x.rec.Decider = config.Origin
		x.pauseFor(waitFault, d.Delay, func() { x.abortOrGoOn(config, d) })
		return filter.Pause
	}
	if d.Abort() {
		x.abortFault(config, d)
		return filter.Reply
	}
	return filter.Continue
}

func (x *Exchange) abortOrGoOn(config *snapshot.Fault, d fault.Decision) {
	if d.Abort() {
		x.abortFault(config, d)
		return
	}
	x.runFilters()
}

func (x *Exchange) abortFault(config *snapshot.Fault, d fault.Decision) {
	x.rec.Decider = config.Origin
	if d.Status != 0 {
		x.reply(d.Status, record.FlagFI, "fault_filter_abort", filter.BodyFaultAbort)
		return
	}
	x.beginReply(200)
	x.respHead.AddString(message.ContentType, "application/grpc")
	x.respHead.AddString(message.GRPCStatus, strconv.Itoa(d.GRPCStatus))
	x.respHead.AddString(message.GRPCMessage, filter.BodyFaultAbort)
	x.sendReply(record.FlagFI, "fault_filter_abort", nil)
}

// checkCORS answers preflight requests and remembers what the response gets.
func (x *Exchange) checkCORS(f *snapshot.HTTPFilter) filter.Verdict {
	policy := f.CORS
	if r := x.rec.Route; r != nil && r.CORS != nil {
		policy = r.CORS
	}
	d := cors.Request(policy, x.head)
	if d.Allowed {
		x.corsFor, x.origin = policy, append(x.origin[:0], x.head.Get(message.Origin)...)
	}
	if d.Verdict != filter.Reply {
		return filter.Continue
	}
	if len(policy.AllowOrigins) == 0 { // the filter is there, but no policy
		return filter.Continue
	}
	x.beginReply(200)
	if d.Allowed {
		cors.Preflight(policy, x.origin, &x.respHead)
		x.corsFor = nil
	}
	x.sendReply(0, "cors_response", nil)
	return filter.Reply
}

// dispatch does what the route says: nothing found, redirect, direct response,
// or forward.
func (x *Exchange) dispatch() {
	r := x.rec.Route
	switch {
	case x.site.Manager.Routes != nil && x.site.Manager.Routes.Pending:
		x.reply(503, record.FlagNR, "route_configuration_pending", "")
	case r == nil:
		x.reply(404, record.FlagNR, "route_not_found", "")
	case r.Redirect != nil:
		x.redirect(r)
	case r.Direct != nil:
		x.direct(r)
	case x.upgrade && !x.upgradeAllowed(r):
		x.reply(403, 0, "upgrade_failed", "")
	default:
		x.forward(r)
	}
}

// upgradeAllowed consults the route, then the manager.
func (x *Exchange) upgradeAllowed(r *snapshot.Route) bool {
	name := "connect"
	if string(x.head.Method()) != "CONNECT" {
		name = string(lowerASCII(x.head.Get(message.Upgrade)))
	}
	if allowed, ok := r.Upgrades[name]; ok {
		return allowed
	}
	return x.site.Manager.Upgrades[name]
}

// forward chooses a destination, edits the head for it and starts the first
// attempt.
func (x *Exchange) forward(r *snapshot.Route) {
	w := snapshot.PickCluster(r.Clusters, x.env.Rand.Uint64())
	if w == nil {
		x.reply(503, record.FlagNC, "cluster_not_found", "")
		return
	}
	x.weighted = w
	x.rec.ClusterName = w.Cluster
	x.rec.Cluster = x.site.Snapshot.Clusters[w.Cluster]
	if x.rec.Cluster == nil {
		code := r.ClusterNotFoundCode
		if code == 0 {
			code = 503
		}
		x.reply(code, record.FlagNC, "cluster_not_found", "")
		return
	}
	if t := x.rec.Trace.Tracing; t != nil && t.Cluster == w.Cluster {
		x.rec.Trace.Sampled = false // spans on their way to the collector make no spans
	}
	x.rewrite(r)
	x.computeHash(r)
	x.startMirrors(r)
	x.announcePeer()
	if x.timeout > 0 && !x.upgrade {
		x.env.buf = strconv.AppendInt(x.env.buf[:0], x.timeout.Milliseconds(), 10)
		if x.perTry > 0 {
			x.env.buf = strconv.AppendInt(x.env.buf[:0], x.perTry.Milliseconds(), 10)
		}
		x.head.Set(message.XEnvoyExpectedRqTimeoutMs, x.env.buf)
	}
	x.forwarding = true
	if x.reqEnded || x.capped {
		x.armDeadline()
	}
	x.startAttempt(&x.first)
}

// pauseFor waits before then; a finished exchange never gets there.
func (x *Exchange) pauseFor(why waitReason, d time.Duration, then func()) {
	x.waitingFor = why
	x.wait = x.env.Clock.NewTimer(func() { // waiting is rare enough to pay for a timer
		if x.done || x.waitingFor != why {
			return
		}
		x.waitingFor = waitNothing
		then()
	})
	x.wait.Arm(d)
}
