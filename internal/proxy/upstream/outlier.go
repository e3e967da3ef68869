package upstream

import (
	"net/netip"
	"slices"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// Detector is passive health checking of one cluster: it counts consecutive
// failures and says which endpoints to leave out for a while. It is a pure
// stepper, driven by Observe and Tick with the time as an argument, and follows
// Envoy's rules (outlier detection, consecutive errors only: Istio switches the
// statistical ones off).
type Detector struct {
	config snapshot.Outlier
	hosts  map[netip.AddrPort]*monitor
	active int
}

type monitor struct {
	errors5xx, errorsGateway, errorsLocal uint32
	ejected                               bool
	ejectedAt                             int64
	// backoff multiplies the base ejection time; it grows with each ejection
	// and shrinks with each healthy interval.
	backoff int64
}

// NewDetector returns a detector without endpoints.
func NewDetector(config snapshot.Outlier) *Detector {
	return &Detector{config: config, hosts: map[netip.AddrPort]*monitor{}}
}

// SetConfig changes thresholds and keeps what was counted.
func (d *Detector) SetConfig(config snapshot.Outlier) { d.config = config }

// SetHosts sets the endpoints; counts of those that stay are kept.
func (d *Detector) SetHosts(hosts []netip.AddrPort) {
	next := make(map[netip.AddrPort]*monitor, len(hosts))
	d.active = 0
	for _, a := range hosts {
		m := d.hosts[a]
		if m == nil {
			m = &monitor{}
		}
		if _, twice := next[a]; !twice && m.ejected {
			d.active++
		}
		next[a] = m
	}
	d.hosts = next
}

// Observe counts one outcome and says whether an endpoint was ejected.
func (d *Detector) Observe(host netip.AddrPort, o Outcome, now int64) bool {
	m := d.hosts[host]
	if m == nil {
		return false
	}
	c := &d.config
	local := o.TimedOut || localOrigin(o.Reset)
	if local && c.SplitExternalLocal {
		m.errorsLocal++
		return c.ConsecutiveLocal > 0 && m.errorsLocal >= c.ConsecutiveLocal && d.eject(m, now)
	}
	if !local && o.Status == 0 {
		return false // cancelled by us: says nothing about the endpoint
	}
	m.errorsLocal = 0
	if !local && o.Status < 500 {
		m.errors5xx, m.errorsGateway = 0, 0
		return false
	}
	// A failure without response counts like a gateway error (Envoy maps it to 503 or 504).
	m.errors5xx++
	if local || o.Status == 502 || o.Status == 503 || o.Status == 504 {
		m.errorsGateway++
	} else {
		m.errorsGateway = 0
	}
	if c.ConsecutiveGateway > 0 && m.errorsGateway >= c.ConsecutiveGateway && d.eject(m, now) {
		return true
	}
	return c.Consecutive5xx > 0 && m.errors5xx >= c.Consecutive5xx && d.eject(m, now)
}

func localOrigin(code message.ResetCode) bool {
	switch code {
	case message.ResetConnectFailure, message.ResetConnectTimeout, message.ResetTLSFailure,
		message.ResetTermination, message.ResetRemote, message.ResetProtocol:
		return true
	}
	return false
}

// eject takes an endpoint out unless that would pass the maximum share.
func (d *Detector) eject(m *monitor, now int64) bool {
	m.errors5xx, m.errorsGateway, m.errorsLocal = 0, 0, 0
	if m.ejected || 100*(d.active+1) > int(d.config.MaxEjectionPercent)*len(d.hosts) {
		return false
	}
	m.ejected, m.ejectedAt = true, now
	m.backoff++
	d.active++
	return true
}

// Tick is called once per interval; it lets endpoints back in whose time is
// over, and says whether any came back.
func (d *Detector) Tick(now int64) bool {
	back := false
	for _, m := range d.hosts {
		if !m.ejected {
			m.backoff = max(0, m.backoff-1)
			continue
		}
		if now-m.ejectedAt >= int64(d.ejectionTime(m)) {
			m.ejected = false
			m.errors5xx, m.errorsGateway, m.errorsLocal = 0, 0, 0
			d.active--
			back = true
		}
	}
	return back
}

// ejectionTime is base × number of ejections, capped.
func (d *Detector) ejectionTime(m *monitor) time.Duration {
	base := d.config.BaseEjection
	most := max(base, d.config.MaxEjection)
	if d.config.MaxEjection == 0 {
		most = max(base, 300*time.Second) // Envoy's default
	}
	return min(base*time.Duration(m.backoff), most)
}

// Ejected lists the endpoints that are out, sorted.
func (d *Detector) Ejected() []netip.AddrPort {
	var out []netip.AddrPort
	for a, m := range d.hosts {
		if m.ejected {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// clean says that nothing is counted against the endpoint.
func (d *Detector) clean(host netip.AddrPort) bool {
	m := d.hosts[host]
	return m == nil || m.errors5xx == 0 && m.errorsGateway == 0 && m.errorsLocal == 0
}

// watch brings the detector up to date with a loop's view of the cluster and
// gives each host its shared flags.
func (s *sharedCluster) watch(c *snapshot.Cluster, hosts []*host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = c.Outlier
	if c.Outlier == nil {
		s.detector = nil
		for _, h := range hosts {
			h.flags = nil
		}
		return
	}
	if s.detector == nil {
		s.detector = NewDetector(*c.Outlier)
	}
	s.detector.SetConfig(*c.Outlier)
	addrs := make([]netip.AddrPort, len(hosts))
	for i, h := range hosts {
		addrs[i] = h.addr
		h.flags = s.flagsOf(h.addr)
	}
	s.detector.SetHosts(addrs)
	s.publish()
}

// flagsOf returns the flags of an endpoint. The caller holds mu.
func (s *sharedCluster) flagsOf(a netip.AddrPort) *hostFlags {
	f := s.flags[a]
	if f == nil {
		f = &hostFlags{}
		s.flags[a] = f
	}
	return f
}

// publish copies the detector's verdicts to the flags. The caller holds mu.
func (s *sharedCluster) publish() {
	changed := false
	for a, m := range s.detector.hosts {
		if f := s.flagsOf(a); f.ejected.Load() != m.ejected {
			f.ejected.Store(m.ejected)
			changed = true
		}
	}
	if changed {
		s.generation.Add(1)
	}
}

// observe counts an outcome for a host.
func (s *sharedCluster) observe(h *host, o Outcome, now int64) {
	good := o.Reset == message.ResetNone && !o.TimedOut && o.Status < 500
	if good && !h.flags.suspect.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detector == nil {
		return
	}
	changed := s.detector.Observe(h.addr, o, now)
	h.flags.suspect.Store(!s.detector.clean(h.addr))
	if changed {
		s.publish()
	}
}

// tick runs the interval work once per interval, whichever loop comes first.
func (s *sharedCluster) tick(now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detector == nil || now-s.lastTick < int64(outlierInterval(s.config))*9/10 {
		return
	}
	s.lastTick = now
	if s.detector.Tick(now) {
		s.publish()
	}
}

// outlierInterval is the configured interval or Envoy's 10 s.
func outlierInterval(c *snapshot.Outlier) time.Duration {
	if c == nil || c.Interval <= 0 {
		return 10 * time.Second
	}
	return c.Interval
}
