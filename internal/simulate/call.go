package simulate

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
	"lateen.dev/lateen/internal/xdspb/origin"
)

// callLimit is how much simulated time a call may take.
const callLimit = time.Minute

// Call sends a request from a pod ("name.namespace") to a URL, or from outside
// the mesh to a gateway (from is "outside"). The error is about the question,
// never about the answer.
func (w *World) Call(from, rawURL string, r Request) (Result, error) {
	all, err := w.CallAtOnce(from, rawURL, r, 1)
	if err != nil {
		return Result{}, err
	}
	return all[0], nil
}

// CallAtOnce sends n equal requests before the first is answered. All results
// have the hops of all of them.
func (w *World) CallAtOnce(from, rawURL string, r Request, n int) ([]Result, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("call %q: not an absolute URL", rawURL)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if u.Port() == "" {
		port, err = 80, nil
	}
	if err != nil {
		return nil, fmt.Errorf("call %q: port: %w", rawURL, err)
	}
	r.Scheme, r.Authority, r.Path = "http", u.Host, requestTarget(rawURL)
	w.hops, w.links = nil, 0
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = &client{world: w, start: w.clock.Now()}
		if err := w.dispatch(clients[i], from, u.Hostname(), uint16(port), r); err != nil {
			return nil, err
		}
	}
	w.settle(func() bool {
		return !slices.ContainsFunc(clients, func(c *client) bool { return !c.done })
	}, callLimit)
	for _, c := range clients {
		if !c.done {
			c.finish("timeout")
		}
	}
	w.settle(func() bool { return false }, 0) // let records of mirrors and resets arrive
	results := make([]Result, n)
	for i, c := range clients {
		c.result.Hops = w.hops
		results[i] = c.result
	}
	return results, nil
}

// requestTarget is the path and query exactly as written.
func requestTarget(rawURL string) string {
	_, rest, _ := strings.Cut(rawURL, "://")
	i := strings.IndexAny(rest, "/?")
	if i < 0 {
		return "/"
	}
	if rest[i] == '?' {
		return "/" + rest[i:]
	}
	return rest[i:]
}

// dispatch opens the client's connection and sends the request on it.
func (w *World) dispatch(c *client, from, host string, port uint16, r Request) error {
	if from == "outside" {
		gateway := w.FindPod("istio-ingressgateway", "")
		if gateway == "" {
			return fmt.Errorf("call from outside: the mesh has no pod istio-ingressgateway")
		}
		addr := netip.AddrPortFrom(w.pods[gateway].view.IPs[0], gatewayPort(port))
		c.send(w.pods[gateway].proxy.inbound, w.conn(netip.MustParseAddr("192.0.2.1"), addr, r), r)
		return nil
	}
	p := w.pods[from]
	if p == nil {
		return fmt.Errorf("call from %q: no such pod; pods: %s", from, strings.Join(w.podNames(), ", "))
	}
	if p.proxy == nil {
		w.dispatchBare(c, p, host, port, r)
		return nil
	}
	addrs := p.proxy.resolve(host)
	if ip, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{ip}
	}
	if len(addrs) == 0 {
		addrs = []netip.Addr{netip.MustParseAddr("198.51.100.1")} // some address outside the mesh
	}
	c.send(p.proxy.outbound, w.conn(p.view.IPs[0], netip.AddrPortFrom(addrs[0], port), r), r)
	return nil
}

// gatewayPort maps a Service's port to the pod's, as the default gateway does.
func gatewayPort(port uint16) uint16 {
	switch port {
	case 80:
		return 8080
	case 443:
		return 8443
	}
	return port
}

func (w *World) conn(from netip.Addr, to netip.AddrPort, r Request) *message.Conn {
	w.nextID++
	c := &message.Conn{ID: w.nextID, Local: to, Remote: netip.AddrPortFrom(from, 50000), OriginalDst: to}
	speaks(c, "", r.speak())
	return c
}

func (r Request) speak() snapshot.Speak {
	if r.HTTP2 {
		return snapshot.SpeakHTTP2
	}
	return snapshot.SpeakHTTP1
}

// dispatchBare sends from a pod without a proxy: the node's service rules pick
// one ready endpoint of the Service.
func (w *World) dispatchBare(c *client, p *pod, host string, port uint16, r Request) {
	addr, ok := w.anyEndpoint(host, p.namespace, port)
	if !ok {
		c.finish("refused")
		return
	}
	conn := w.conn(p.view.IPs[0], addr, r)
	accept, far, err := w.reach(p, upstream.Target{Addr: addr, Speak: r.speak()}, conn)
	if err != nil {
		c.finish("refused")
		return
	}
	c.send(accept, far, r)
}

// anyEndpoint picks an endpoint of a service at random.
func (w *World) anyEndpoint(host, namespace string, port uint16) (netip.AddrPort, bool) {
	var svc *mesh.Service
	found := false
	for _, name := range searched(host, namespace) {
		if svc, found = w.mesh.ServiceByHost(name, namespace); found {
			break
		}
	}
	if !found {
		return netip.AddrPort{}, false
	}
	endpoints := w.mesh.EndpointsOf(svc, port)
	if len(endpoints) == 0 {
		return netip.AddrPort{}, false
	}
	e := endpoints[w.rand.IntN(len(endpoints))]
	ip, err := netip.ParseAddr(e.Address)
	return netip.AddrPortFrom(ip, e.Port), err == nil
}

// client receives the response of one call.
type client struct {
	world  *World
	start  int64
	done   bool
	result Result
}

func (c *client) send(accept server, conn *message.Conn, r Request) {
	x := &link{world: c.world, client: c, conn: conn, over: func(bool) {}}
	x.connect(accept, conn)
	if x.server == nil {
		return
	}
	var h message.Head
	h.SetMethod([]byte(r.Method))
	h.SetScheme([]byte(r.Scheme))
	h.SetAuthority([]byte(r.Authority))
	h.SetPath([]byte(r.Path))
	h.AddString(message.UserAgent, "scenario")
	for _, f := range r.Header {
		h.AddNameString(strings.ToLower(f[0]), f[1])
	}
	if len(r.Body) > 0 {
		h.AddString(message.ContentLength, strconv.Itoa(len(r.Body)))
	}
	s := (*clientSender)(x)
	s.SendHead(&h, len(r.Body) == 0)
	if len(r.Body) > 0 {
		s.SendData(r.Body, true)
	}
}

// finish ends the call, once; why is "" when a complete response came.
func (c *client) finish(why string) {
	if !c.done {
		c.result.Err, c.done = why, true
		c.result.Took = time.Duration(c.world.clock.Now() - c.start)
	}
}

func (c *client) OnInformational(*message.Head) {}
func (c *client) OnDrained()                    {}

func (c *client) OnHead(h *message.Head, end bool) {
	c.result.Status = h.Status()
	c.result.Header = fieldsOf(h)
	if end {
		c.finish("")
	}
}

func (c *client) OnData(p []byte, end bool) {
	c.result.Body = append(c.result.Body, p...)
	if end {
		c.finish("")
	}
}

func (c *client) OnTrailers(h *message.Head) {
	c.result.Trailers = fieldsOf(h)
	c.finish("")
}
func (c *client) OnReset(message.ResetCode) { c.finish("reset") }

func fieldsOf(h *message.Head) [][2]string {
	var out [][2]string
	for i := range h.Len() {
		if _, name, value, ok := h.Field(i); ok {
			out = append(out, [2]string{string(name), string(value)})
		}
	}
	return out
}

func placeText(p *origin.Place) string { return fmt.Sprintf("%s:%d", p.GetFile(), p.GetLine()) }
