package http2

import (
	"slices"

	"lateen.dev/lateen/internal/proxy/http2/hpack"
	"lateen.dev/lateen/internal/proxy/message"
)

// assumedStreams is how many exchanges a connection takes before the server
// has said how many it wants.
const assumedStreams = 100

// ClientOptions configures upstream connections; shared like ServerOptions.
type ClientOptions struct {
	// Pool is the loop's; nil gives each connection one of its own.
	Pool *Pool
	// Timers is the loop; nil switches keep-alive and the wait for SETTINGS off.
	Timers Timers
	// Stats are counted here; nil counts in the pool's.
	Stats  *Stats
	Limits Limits
	// MaxStreams bounds the concurrent exchanges of a connection, whatever the
	// server allows; 1024 by default.
	MaxStreams uint32
	KeepAlive  KeepAlive
}

// Client is the client side of one upstream connection. It implements
// message.ClientConn.
type Client struct {
	conn
	o        *ClientOptions
	obs      message.ClientObserver
	nextID   uint32
	used     int
	unsent   int       // streams without a head yet
	waiting  []*stream // they
	draining bool      // Close(true) was called
}

var _ message.ClientConn = (*Client)(nil)

// NewClient speaks HTTP/2 on an established upstream connection and installs
// itself as the handler of t.
func NewClient(t message.Transport, obs message.ClientObserver, o *ClientOptions) *Client {
	o.Limits.setDefaults()
	if o.MaxStreams == 0 {
		o.MaxStreams = 1024
	}
	c := &Client{obs: obs, o: o, nextID: 1}
	c.cli = c
	c.init(t, o.Pool, o.Stats, o.Timers, &o.Limits)
	b := append(c.pool.scratch[:0], preface...)
	start := len(b)
	b = append(b, make([]byte, frameHeader)...)
	b = appendSetting(b, settingEnablePush, 0)
	b = appendSetting(b, settingInitialWindowSize, streamWindow)
	b = appendSetting(b, settingMaxHeaderListSize, uint32(o.Limits.HeadBytes))
	putFrame(b[start:], len(b)-start-frameHeader, frameSettings, 0, 0)
	c.pool.scratch = b
	t.Write(b)
	c.windowUpdate(0, connWindow-initialWindow)
	c.at(&c.clocks.settings, settingsTimeout)
	c.startKeepAlive(o.KeepAlive)
	t.SetHandler(c)
	return c
}

// Open starts an exchange; its stream gets an identifier with its head.
func (c *Client) Open(r message.Receiver) message.Sender {
	s := c.pool.getStream()
	s.c, s.r = &c.conn, r
	s.recvWindow = streamWindow
	s.sendLeft, s.recvLeft = -1, -1
	c.used++
	c.unsent++
	c.waiting = append(c.waiting, s)
	return s
}

// Capacity is what the server's limit and ours leave.
func (c *Client) Capacity() int {
	if c.state == connClosed || c.draining || c.peerAway {
		return 0
	}
	limit := int64(min(c.peerMax, c.o.MaxStreams))
	if !c.settled {
		limit = min(limit, assumedStreams)
	}
	ids := (int64(maxStreamID)-int64(c.nextID))/2 + 1 - int64(c.unsent)
	if c.nextID > maxStreamID {
		ids = 0
	}
	return int(max(min(limit-int64(c.Active()), ids), 0))
}

// Active is the number of exchanges in flight.
func (c *Client) Active() int { return c.streams.count + c.unsent }

// Used is the number of exchanges opened so far.
func (c *Client) Used() int { return c.used }

// Close ends the connection: after the exchanges in flight if graceful.
func (c *Client) Close(graceful bool) {
	if c.state == connClosed {
		return
	}
	c.draining = true
	switch {
	case !graceful:
		c.goAway(0, NoError, "")
		c.end(message.ResetCancel, nil)
	case c.Active() == 0:
		c.goAway(0, NoError, "")
		c.end(message.ResetNone, nil)
	}
}

// Conn describes the connection.
func (c *Client) Conn() *message.Conn { return c.t.Conn() }

// opened is how many streams were begun, for guard.
func (c *Client) opened() uint32 { return c.nextID >> 1 }

func (c *Client) unsentStreams(to []*stream) []*stream { return append(to, c.waiting...) }

// unlist takes a stream without identifier off the books.
func (c *Client) unlist(s *stream) {
	c.unsent--
	if i := slices.Index(c.waiting, s); i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
}

// streamGone is called whenever a stream was removed.
func (c *Client) streamGone() {
	switch {
	case c.state == connClosed:
	case c.Active() == 0 && (c.draining || c.peerAway || c.nextID > maxStreamID):
		c.goAway(0, NoError, "")
		c.end(message.ResetNone, nil)
	case c.Capacity() > 0:
		c.obs.OnCapacity(c)
	}
}

// settingsCame follows the server's SETTINGS.
func (c *Client) settingsCame(first bool) {
	if first {
		for _, s := range slices.Clone(c.waiting) {
			if s.deferred && !s.closed {
				s.deferred = false
				h := s.heads
				c.sendHead(s, &h.extra, false)
			}
		}
	}
	if c.state == connOpen && c.Capacity() > 0 {
		c.obs.OnCapacity(c)
	}
}

// goneAway handles GOAWAY: streams above last were not processed.
func (c *Client) goneAway(last uint32) {
	c.resetAll(message.ResetRefused, func(s *stream) bool { return s.id > last })
	c.streamGone()
}

// sendHead sends a request head.
func (c *Client) sendHead(s *stream, h *message.Head, end bool) {
	connect := string(h.Method()) == "CONNECT"
	upgrade := !end && !connect && h.Has(message.Upgrade)
	if c.state == connClosed || c.peerAway || c.nextID > maxStreamID {
		c.refuseSend(s, message.ResetRefused)
		return
	}
	if upgrade && !c.connectProtocol {
		if c.settled {
			c.refuseSend(s, message.ResetProtocol)
			return
		}
		// Whether the server takes it is not known yet.
		s.deferred = true
		s.heads = c.pool.getHeads()
		s.heads.extra.CopyFrom(h)
		return
	}
	length, has := contentLength(h)
	tunnel := connect || upgrade
	if !sendable(h, connect) || has && length > 0 && end {
		c.refuseSend(s, cancelled)
		return
	}
	set := fieldsAll
	switch {
	case tunnel || has && length < 0:
		set = fieldsNoLength
	case has:
		s.sendLeft = length
	}
	s.headSent = true
	s.isHead, s.connect, s.upgrade = string(h.Method()) == "HEAD", connect, upgrade
	c.unlist(s)
	s.id = c.nextID
	c.nextID += 2
	s.sendWindow = c.peerWindow
	c.streams.put(s)
	if upgrade {
		s.proto = string(h.Get(message.Upgrade))
	}
	b := c.requestPseudo(s, h)
	if !c.writeBlock(s, c.appendFields(b, h, set), end) {
		c.nextID -= 2 // nothing was written: the identifier is free
		c.streams.remove(s.id)
		c.unsent++ // remove takes it off again
		s.id = 0
		c.refuseSend(s, cancelled)
		return
	}
	if end {
		s.flushed = true
		s.endOutput()
	}
}

// requestPseudo begins the block of a request head.
func (c *Client) requestPseudo(s *stream, h *message.Head) []byte {
	b := c.beginBlock()
	method := h.Method()
	if s.upgrade {
		method = connectMethod
	}
	b = c.enc.Method(b, method)
	if s.connect {
		return c.enc.Authority(b, h.Authority())
	}
	scheme := h.Scheme()
	if len(scheme) == 0 {
		scheme = schemeHTTP
	}
	b = c.enc.Scheme(b, scheme)
	b = c.enc.Authority(b, h.Authority())
	b = c.enc.Path(b, h.Path())
	if s.upgrade {
		b = c.enc.Protocol(b, []byte(s.proto))
	}
	return b
}

var (
	connectMethod = []byte("CONNECT")
	schemeHTTP    = []byte("http")
)

// refuseSend ends an exchange whose head was not sent.
func (c *Client) refuseSend(s *stream, code message.ResetCode) {
	r := s.r
	c.remove(s, false)
	if r != nil {
		r.OnReset(code)
	}
	c.removed()
}

// section handles a header block: a response head, or trailers.
func (c *Client) section(id uint32, block []byte, end bool) {
	s := c.streams.get(id)
	if s == nil {
		c.lateSection(id, block)
		return
	}
	switch {
	case s.recvEnd:
		if _, ok := c.decode(&s.heads.extra, block, 0); ok {
			c.streamError(s, errClosed)
		}
	case s.headSeen:
		c.trailers(s, block, end)
	default:
		c.head(s, block, end)
	}
}

// lateSection handles a header block on a stream that is over.
func (c *Client) lateSection(id uint32, block []byte) {
	if c.idle(id) {
		c.fail(errStreamID)
		return
	}
	h := c.pool.getHeads()
	_, ok := c.decode(&h.extra, block, responseKinds)
	c.pool.putHeads(h)
	if ok {
		c.late(id)
	}
}

// head handles an interim or final response head.
func (c *Client) head(s *stream, block []byte, end bool) {
	if s.heads == nil {
		s.heads = c.pool.getHeads()
	}
	h := &s.heads.head
	m, ok := c.decode(h, block, responseKinds)
	if !ok {
		return
	}
	err := m.err
	switch {
	case err != nil:
	case !m.has(hpack.Status):
		err = errPseudoMissing
	case m.status == 101:
		err = errSwitch
	case m.status < 200:
		if s.infos++; end || s.infos > maxHeadInfos {
			err = errInformational
		}
	case end && m.length > 0 && !s.isHead && m.status != 304 && m.status != 204:
		err = errLengthBody
	}
	if err != nil {
		c.streamError(s, err)
		return
	}
	h.Del(message.Host)
	if m.status < 200 {
		s.r.OnInformational(h)
		return
	}
	c.begin(s, h, m, end)
}

// begin hands a final response head over.
func (c *Client) begin(s *stream, h *message.Head, m *section, end bool) {
	s.headSeen = true
	noBody := s.isHead || m.status == 204 || m.status == 304
	if m.length >= 0 {
		s.recvLeft = m.length
	}
	if noBody {
		s.recvLeft = 0
	}
	tunnel := (s.upgrade || s.connect) && m.status/100 == 2
	if tunnel {
		s.recvLeft = -1
		h.Del(message.ContentLength)
		if s.upgrade { // RFC 8441 §5: what HTTP/1.1 calls switching protocols
			h.SetStatus(101)
			h.AddString(message.Upgrade, s.proto)
		}
		s.r.OnHead(h, false)
		if end && !s.closed {
			c.deliver(s, nil, true)
		}
		return
	}
	if end {
		s.endInput().OnHead(h, true)
		c.settle(s)
		return
	}
	s.r.OnHead(h, false)
}

// trailers ends a response with its trailer section.
func (c *Client) trailers(s *stream, block []byte, end bool) {
	m, ok := c.decode(&s.heads.extra, block, 0)
	switch {
	case !ok:
	case !end:
		c.streamError(s, errTrailersEnd)
	default:
		c.endTrailers(s, m)
	}
}

// OnClosed is the transport's last call.
func (c *Client) OnClosed(err error) {
	c.closed(err)
	if c.err != nil {
		err = c.err
	}
	c.obs.OnClosed(c, c.code, err)
}
