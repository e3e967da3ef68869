package record

// Signal is one kind of OTLP data.
type Signal uint8

// The signals of OTLP.
const (
	Traces Signal = iota
	Logs
	Metrics
	signalCount
)

// String returns the signal's name as OTLP spells it.
func (s Signal) String() string { return [...]string{"traces", "logs", "metrics"}[s] }

// Destination is where OTLP goes.
type Destination struct {
	// Cluster is the provider's cluster; "" is the hub of the bootstrap.
	Cluster string
	// Authority is the :authority or Host to use, "" for the address.
	Authority string
	// Path is set for OTLP/HTTP.
	Path string
}

// streamBytes is the size at which a loop hands its encoded records over
// without waiting for a flush.
const streamBytes = 48 << 10

type streamKey struct {
	signal  Signal
	dest    Destination
	service string // resource service.name
	logName string
}

// stream is the encode buffer of one loop for one destination and resource.
type stream struct {
	key    streamKey
	prefix *prefix
	data   []byte
	count  int
}

// prefix is the pre-encoded resource and scope that precede the records.
type prefix struct {
	resource, scope []byte
}

func (r *Recorder) stream(k streamKey) *stream {
	s := r.streams[k]
	if s == nil {
		s = &stream{key: k, prefix: r.set.opts.Identity.prefix(k.service, k.logName)}
		r.streams[k] = s
	}
	return s
}

// handOver copies what was encoded into a chunk of exact size and gives it to
// the exporter; the loop keeps its buffer.
func (r *Recorder) handOver(k streamKey, s *stream) {
	if r.set.opts.Exporter == nil {
		return // Explain reads them
	}
	data := make([]byte, len(s.data))
	copy(data, s.data)
	r.set.opts.Exporter.enqueue(chunk{signal: k.signal, dest: k.dest, prefix: s.prefix, data: data, count: s.count})
	s.data, s.count = s.data[:0], 0
}

// prefix encodes the resource (ResourceSpans.resource, field 1) and the scope
// (ScopeSpans.scope, field 1); logs and metrics use the same field numbers.
func (id *Identity) prefix(service, logName string) *prefix {
	b, at := open(nil, 1)
	b = attr(b, 1, "service.name", service)
	b = attr(b, 1, "service.namespace", id.Namespace)
	b = attr(b, 1, "service.version", id.Workload.Version)
	b = attr(b, 1, "service.instance.id", id.instance())
	b = attr(b, 1, "k8s.namespace.name", id.Namespace)
	b = attr(b, 1, "k8s.pod.name", id.Pod)
	b = attr(b, 1, "k8s.deployment.name", id.Name)
	b = attr(b, 1, "k8s.pod.ip", id.IP)
	b = attr(b, 1, "telemetry.sdk.name", "lateen")
	b = attr(b, 1, "telemetry.sdk.language", "go")
	b = attr(b, 1, "telemetry.sdk.version", id.Version)
	b = attr(b, 1, "log_name", logName)
	p := &prefix{resource: closeMsg(b, at)}
	b, at = open(nil, 1)
	b = appendStr(b, 1, scopeName)
	if id.Version != "" {
		b = appendStr(b, 2, id.Version)
	}
	p.scope = closeMsg(b, at)
	return p
}

func (id *Identity) instance() string {
	if id.Pod == "" {
		return id.NodeID
	}
	return id.Pod + "." + id.Namespace
}
