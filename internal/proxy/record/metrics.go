package record

import (
	"sort"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Bounds are Envoy's default histogram bucket bounds. They serve milliseconds
// and bytes alike, as in Istio.
var Bounds = [...]float64{
	0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000,
	30000, 60000, 300000, 600000, 1800000, 3600000,
}

// Histogram is a cumulative histogram over Bounds.
type Histogram struct {
	Counts [len(Bounds) + 1]uint64
	Count  uint64
	Sum    float64
}

func (h *Histogram) observe(v float64) {
	i := 0
	for i < len(Bounds) && v > Bounds[i] {
		i++
	}
	h.Counts[i]++
	h.Count++
	h.Sum += v
}

// Protocol labels of a series.
const (
	protoHTTP = "http"
	protoGRPC = "grpc"
	protoTCP  = "tcp"
)

// SeriesKey identifies one series by what Istio's labels are made of. The side
// that reports is this proxy itself and is constant.
type SeriesKey struct {
	Reporter                        string // source or destination
	Peer                            snapshot.Workload
	PeerPrincipal, OwnPrincipal     string
	Service, ServiceName, ServiceNS string
	Protocol                        string
	Status                          uint16
	GRPCStatus                      int16 // -1 when the exchange is not gRPC
	Flags                           Flags
	MutualTLS                       bool
}

// Series holds the values of one key on one loop, or their sum over loops.
type Series struct {
	Key SeriesKey
	// Start and Last are unix nanoseconds of the first and last change.
	Start, Last int64
	// HTTP holds the request metrics, nil for TCP.
	Requests                              uint64
	Duration, RequestBytes, ResponseBytes *Histogram
	Opened, Closed, Sent, Received        uint64
	// Messages are gRPC's; 0 for other protocols.
	RequestMessages, ResponseMessages uint64
}

// tcp says that the series counts connections.
func (s *Series) tcp() bool { return s.Key.Protocol == protoTCP }

// table is the series of one loop.
type table struct {
	series map[SeriesKey]*Series
	max    int
	// recent is a direct-mapped cache in front of the map: comparing a key
	// whose strings share memory is cheaper than hashing its dozen strings.
	recent [64]*Series
	// byCause finds the series of an exchange by what its labels are read from,
	// without making the key: 0.99 of the CPU of a request (bench/perf, h1-mesh-c64).
	byCause [64]causeSlot
	// refused counts observations lost because the table was full of live
	// series; evicted counts idle series removed.
	refused, evicted uint64
}

// cause is what all labels of an HTTP exchange follow from.
type cause struct {
	cluster   *snapshot.Cluster
	endpoint  *snapshot.Endpoint
	down, up  *message.TLSInfo
	peer      snapshot.Workload
	flags     Flags
	status    uint16
	grpc      int16
	direction snapshot.Direction
}

type causeSlot struct {
	cause  cause
	series *Series
}

func causeOf(rec *Record) cause {
	c := cause{cluster: rec.Cluster, peer: rec.Peer, flags: rec.Flags, status: uint16(rec.Status), grpc: -1, direction: rec.Direction}
	if rec.Conn != nil {
		c.down = rec.Conn.TLS
	}
	if a := rec.Last(); a != nil {
		c.endpoint, c.up = a.Endpoint, a.TLS
	}
	if st, ok := grpcStatus(rec); ok {
		c.grpc = int16(st)
	}
	return c
}

func (t *table) slot(c *cause) *causeSlot {
	n := uint(c.status)*7 + uint(c.flags) + uint(len(c.peer.Name))*5
	if c.cluster != nil {
		n += uint(len(c.cluster.Name)) * 31
	}
	return &t.byCause[n%uint(len(t.byCause))]
}

// idle is the age after which a full table may forget a series.
const idle = 10 * time.Minute

func (t *table) get(k *SeriesKey, now int64) *Series {
	slot := &t.recent[(uint(k.Status)*7+uint(k.Flags)+uint(len(k.Service))*31+uint(len(k.Peer.Name))*5+uint(len(k.Peer.Version)))%uint(len(t.recent))]
	if s := *slot; s != nil && s.Key == *k {
		s.Last = now
		return s
	}
	s := t.series[*k]
	if s == nil {
		if len(t.series) >= t.max && !t.evict(now) {
			t.refused++
			return nil
		}
		s = &Series{Key: *k, Start: now}
		if !s.tcp() {
			s.Duration, s.RequestBytes, s.ResponseBytes = new(Histogram), new(Histogram), new(Histogram)
		}
		t.series[*k] = s
	}
	s.Last = now
	*slot = s
	return s
}

// evict forgets idle series and says whether there is room now.
func (t *table) evict(now int64) bool {
	for k, s := range t.series {
		if now-s.Last > int64(idle) {
			delete(t.series, k)
			t.evicted++
		}
	}
	clear(t.recent[:])
	clear(t.byCause[:])
	return len(t.series) < t.max
}

// copyTo adds the table's values to sum.
func (t *table) copyTo(sum map[SeriesKey]*Series) {
	for k, s := range t.series {
		d := sum[k]
		if d == nil {
			d = &Series{Key: k, Start: s.Start}
			if !s.tcp() {
				d.Duration, d.RequestBytes, d.ResponseBytes = new(Histogram), new(Histogram), new(Histogram)
			}
			sum[k] = d
		}
		d.Start, d.Last = min(d.Start, s.Start), max(d.Last, s.Last)
		d.Requests += s.Requests
		d.RequestMessages += s.RequestMessages
		d.ResponseMessages += s.ResponseMessages
		d.Opened, d.Closed, d.Sent, d.Received = d.Opened+s.Opened, d.Closed+s.Closed, d.Sent+s.Sent, d.Received+s.Received
		if !s.tcp() {
			d.Duration.add(s.Duration)
			d.RequestBytes.add(s.RequestBytes)
			d.ResponseBytes.add(s.ResponseBytes)
		}
	}
}

func (h *Histogram) add(o *Histogram) {
	for i := range h.Counts {
		h.Counts[i] += o.Counts[i]
	}
	h.Count += o.Count
	h.Sum += o.Sum
}

// sortSeries orders series by their labels, so that output is stable.
func sortSeries(m map[SeriesKey]*Series) []*Series {
	out := make([]*Series, 0, len(m))
	for _, s := range m {
		out = append(out, s)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key.less(&out[j].Key) })
	return out
}

func (k *SeriesKey) less(o *SeriesKey) bool {
	for _, p := range [...][2]string{
		{k.Protocol, o.Protocol},
		{k.Reporter, o.Reporter},
		{k.Service, o.Service},
		{k.ServiceName, o.ServiceName},
		{k.ServiceNS, o.ServiceNS},
		{k.Peer.Namespace, o.Peer.Namespace},
		{k.Peer.Name, o.Peer.Name},
		{k.Peer.Version, o.Peer.Version},
		{k.Peer.CanonicalRevision, o.Peer.CanonicalRevision},
		{k.PeerPrincipal, o.PeerPrincipal},
		{k.OwnPrincipal, o.OwnPrincipal},
	} {
		if p[0] != p[1] {
			return p[0] < p[1]
		}
	}
	if k.Status != o.Status {
		return k.Status < o.Status
	}
	if k.GRPCStatus != o.GRPCStatus {
		return k.GRPCStatus < o.GRPCStatus
	}
	return k.Flags < o.Flags
}

// observe counts one finished HTTP exchange.
func (r *Recorder) observe(rec *Record, now int64) {
	if rec.Manager == nil || rec.Manager.Stats == nil {
		return
	}
	c := causeOf(rec)
	slot := r.table.slot(&c)
	s := slot.series
	if s == nil || slot.cause != c {
		k := SeriesKey{Status: c.status, Flags: c.flags, GRPCStatus: c.grpc, Protocol: protoHTTP}
		if c.grpc >= 0 {
			k.Protocol = protoGRPC
		}
		r.fillKey(&k, rec)
		if s = r.table.get(&k, now); s == nil {
			return
		}
		*slot = causeSlot{c, s}
	}
	s.Last = now
	s.Requests++
	s.RequestMessages += rec.RequestMessages
	s.ResponseMessages += rec.ResponseMessages
	s.Duration.observe(float64(rec.Total) / float64(time.Millisecond))
	s.RequestBytes.observe(float64(rec.BytesReceived))
	s.ResponseBytes.observe(float64(rec.BytesSent))
}

// fillKey sets who called whom.
func (r *Recorder) fillKey(k *SeriesKey, rec *Record) {
	k.Reporter = "source"
	if rec.Direction == snapshot.Inbound {
		k.Reporter = "destination"
	}
	k.Peer = rec.Peer
	if k.Reporter == "destination" {
		if c := rec.Conn; c != nil && c.TLS != nil {
			k.MutualTLS, k.PeerPrincipal, k.OwnPrincipal = c.TLS.Mutual, c.Principal(), c.TLS.LocalURISAN
		}
	} else if a := rec.Last(); a != nil {
		if k.Peer.Name == "" && a.Endpoint != nil {
			k.Peer = a.Endpoint.Workload
		}
		if t := a.TLS; t != nil && len(t.PeerURISANs) > 0 {
			k.MutualTLS, k.PeerPrincipal, k.OwnPrincipal = t.Mutual, t.PeerURISANs[0], t.LocalURISAN
		}
	}
	if c := rec.Cluster; c != nil {
		k.Service, k.ServiceName, k.ServiceNS = c.Service, c.ServiceName, c.Namespace
	}
	if k.Service == "" && rec.Cluster != nil {
		// Passthrough and black hole: the cluster is all that is known
		// (Istio names it as the destination service).
		k.ServiceName = rec.Cluster.Name
	}
}

// grpcStatus finds the gRPC status of an exchange whose request was gRPC.
func grpcStatus(rec *Record) (int, bool) {
	if rec.Request == nil || !isGRPC(rec.Request.Get(message.ContentType)) {
		return 0, false
	}
	var v []byte
	if rec.Trailers != nil {
		v = rec.Trailers.Get(message.GRPCStatus)
	}
	if v == nil && rec.Response != nil {
		v = rec.Response.Get(message.GRPCStatus)
	}
	n, ok := 0, len(v) > 0 && len(v) < 4
	for _, c := range v {
		if c < '0' || c > '9' {
			ok = false
			break
		}
		n = n*10 + int(c-'0')
	}
	if !ok {
		return grpcFromHTTP(rec.Status), true
	}
	return n, true
}

func isGRPC(contentType []byte) bool {
	const p = "application/grpc"
	return len(contentType) >= len(p) && string(contentType[:len(p)]) == p &&
		(len(contentType) == len(p) || contentType[len(p)] == '+' || contentType[len(p)] == ';')
}

// grpcFromHTTP is what a client makes of an answer without grpc-status
// (gRPC: http-grpc-status-mapping).
func grpcFromHTTP(status int) int {
	switch status {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}
