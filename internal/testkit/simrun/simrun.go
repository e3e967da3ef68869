// Package simrun runs scenarios by simulation: every workload becomes pods with
// addresses, the test application is a function, and time is virtual. It takes
// milliseconds a scenario and needs no privilege.
package simrun

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/resource"
	"lateen.dev/lateen/internal/simulate"
	"lateen.dev/lateen/internal/testkit/scenario"
)

// Run carries out every call of a scenario and returns what was not as wanted.
func Run(s *scenario.Scenario) []error {
	p, err := NewPlan(s)
	if err != nil {
		return []error{err}
	}
	world, app, err := p.start(p.Sent)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for i, c := range s.Calls {
		results, err := runCall(world, app, s, c, nil)
		if err == nil {
			err = c.Check(results)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: call %d: %w", s.Name, i+1, err))
		}
	}
	return errs
}

// Plan is a scenario that can be run again and again, each time with what the
// proxies are sent changed. It is safe for concurrent use.
type Plan struct {
	Scenario *scenario.Scenario
	// Sent is what each proxy is sent, by the pod's name.namespace. The messages
	// are shared by all runs.
	Sent map[string]*translate.Resources
	plan *simulate.Plan
	pods map[string]scenario.Workload
}

// FirstFailure runs the scenario with sent in place of Sent and returns the
// first expectation that does not hold, nil if all do. A call is repeated at
// most limit times.
func (p *Plan) FirstFailure(sent map[string]*translate.Resources, limit int) error {
	world, app, err := p.start(sent)
	if err != nil {
		return err
	}
	for _, c := range p.Scenario.Calls {
		c.Times = min(c.Times, limit)
		results, err := runCall(world, app, p.Scenario, c, c.CheckOne)
		if err == nil {
			err = c.Check(results)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Envoys returns what the proxies would be sent if they were stock Envoys.
func (p *Plan) Envoys() map[string]*translate.Resources {
	out := map[string]*translate.Resources{}
	for name, n := range p.plan.Nodes() {
		out[name] = translate.Build(p.plan.Mesh(), n)
	}
	return out
}

func (p *Plan) start(sent map[string]*translate.Resources) (*simulate.World, *app, error) {
	a := &app{pods: p.pods, attempts: map[string]int{}, served: map[string]int{}}
	world, err := p.plan.Start(a, sent)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", p.Scenario.Name, err)
	}
	return world, a, nil
}

// NewPlan reads the configuration of a scenario.
func NewPlan(s *scenario.Scenario) (*Plan, error) {
	p := &Plan{Scenario: s, pods: map[string]scenario.Workload{}}
	var objects []*resource.Object
	decode := func(name, text string) error {
		decoded, findings := resource.Decode(name, []byte(text))
		for _, f := range findings {
			if f.Severity.String() == "error" && name == "cluster.yaml" {
				return fmt.Errorf("%s: %s: %s: %s", s.Name, name, f.Pos, f.Message)
			}
		}
		objects = append(objects, decoded...)
		return nil
	}
	if err := decode("cluster.yaml", s.Services(serviceIP())+pods(s, p.pods)); err != nil {
		return nil, err
	}
	for _, f := range s.Files {
		if err := decode(f.Name, string(f.Data)); err != nil {
			return nil, err
		}
	}
	p.plan = simulate.NewPlan(simulate.Options{
		Objects: objects, Seed: 1, Now: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC), VIPs: map[string][]netip.Addr{},
	})
	p.Sent = p.plan.Resources()
	return p, nil
}

// serviceIP gives services addresses in order.
func serviceIP() func(name, namespace string) string {
	next := 0
	return func(string, string) string {
		next++
		return fmt.Sprintf("10.78.0.%d", next)
	}
}

const podManifest = `---
apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  namespace: %[2]s
  labels: {%[3]s}
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: %[4]s-5d4f8c9b7d, uid: "1", controller: true}
spec:
  serviceAccountName: %[5]s
  containers:
  - {name: app, image: %[6]s, ports: [{name: %[7]s, containerPort: %[8]d}]}
%[9]sstatus:
  phase: Running
  podIP: %[10]s
  podIPs: [{ip: %[10]s}]
  conditions: [{type: Ready, status: "True"}]
`

const proxyContainer = "  - {name: istio-proxy, image: auto}\n"

// pods makes a Pod for each replica, and the gateway that outside calls enter by.
func pods(s *scenario.Scenario, byName map[string]scenario.Workload) string {
	var b strings.Builder
	for i, w := range s.Workloads {
		labels := fmt.Sprintf("app: %s, version: %s, pod-template-hash: 5d4f8c9b7d", w.Name, w.Version)
		sidecar := ""
		if w.Sidecar {
			sidecar = proxyContainer
			labels += ", security.istio.io/tlsMode: istio"
		}
		for r := range w.Replicas {
			name := fmt.Sprintf("%s-%s-%d", w.Deployment(), w.Namespace, r)
			byName[name] = w
			fmt.Fprintf(&b, podManifest, name, w.Namespace, labels, w.Deployment(), w.Name, scenario.EchoImage,
				w.PortName, w.Port, sidecar, fmt.Sprintf("10.77.%d.%d", i+1, r+1))
		}
	}
	labels := "app: istio-ingressgateway, istio: ingressgateway"
	fmt.Fprintf(&b, podManifest, "istio-ingressgateway-0", "istio-system", labels, "istio-ingressgateway", "istio-ingressgateway",
		"auto", "http2", 8080, proxyContainer, "10.77.250.1")
	b.WriteString(gatewayService)
	return b.String()
}

const gatewayService = `---
apiVersion: v1
kind: Service
metadata:
  name: istio-ingressgateway
  namespace: istio-system
spec:
  type: LoadBalancer
  clusterIP: 10.78.9.1
  clusterIPs: [10.78.9.1]
  selector: {istio: ingressgateway}
  ports:
  - {name: http2, port: 80, targetPort: 8080}
`

// app is the test application of all pods, as a function.
type app struct {
	pods     map[string]scenario.Workload
	attempts map[string]int
	served   map[string]int
}

// Serve implements simulate.Application.
func (a *app) Serve(pod string, r simulate.Request) simulate.Response {
	w, known := a.pods[pod]
	name := pod
	b := scenario.Behaviour{Status: 200}
	if known {
		name, b = w.Deployment(), w.Behaviour
	}
	a.served[name]++
	key := pod + " " + r.Get("x-request-id")
	a.attempts[key]++
	if b.First > 0 && a.attempts[key] > b.First {
		b = scenario.Behaviour{Status: 200}
	}
	header := map[string][]string{}
	for _, h := range r.Header {
		header[h[0]] = append(header[h[0]], h[1])
	}
	body, err := json.Marshal(scenario.Seen{
		Name: name, Method: r.Method, Path: r.Path, Host: r.Authority, Header: header, Body: string(r.Body), Attempt: a.attempts[key],
		Proto: proto(r.HTTP2),
	})
	if err != nil {
		panic(err) // a struct of strings always marshals
	}
	if r.Get("content-type") == scenario.GRPCType {
		return grpcAnswer(b, body)
	}
	return simulate.Response{
		Status: b.Status, Delay: b.Delay, Reset: b.Reset, Body: body,
		Header: [][2]string{{"content-type", "application/json"}, {"x-echo-name", name}},
	}
}

func proto(http2 bool) string {
	if http2 {
		return "HTTP/2.0"
	}
	return "HTTP/1.1"
}

// grpcAnswer is a unary response: a message and trailers, or only trailers for a
// failure.
func grpcAnswer(b scenario.Behaviour, body []byte) simulate.Response {
	out := simulate.Response{Status: 200, Delay: b.Delay, Reset: b.Reset, Header: [][2]string{{"content-type", scenario.GRPCType}}}
	status := [2]string{"grpc-status", strconv.Itoa(scenario.GRPCStatus(b.Status))}
	if b.Status != 200 {
		out.Header = append(out.Header, status)
		return out
	}
	out.Body, out.Trailers = scenario.GRPCFrame(body), [][2]string{status}
	return out
}

// requestOf is the request of a call.
func requestOf(c scenario.Call) simulate.Request {
	r := simulate.Request{Method: c.Method, Header: c.Headers, Body: []byte(c.Body), HTTP2: c.HTTP2}
	if c.GRPC() {
		r.Method, r.Body = "POST", scenario.GRPCFrame(r.Body)
		r.Header = append([][2]string{{"content-type", scenario.GRPCType}, {"te", "trailers"}}, r.Header...)
	}
	return r
}

// runCall sends the requests of a call, until check, if any, refuses a result.
func runCall(world *simulate.World, a *app, s *scenario.Scenario, c scenario.Call, check func(int, scenario.Result) error) ([]scenario.Result, error) {
	if c.To != "" || c.Family != 0 {
		return nil, fmt.Errorf("line %d: to and family need a network: only the live runner knows them", c.Line)
	}
	from := "outside"
	if c.From != "outside" {
		w, ok := workload(s, c.From)
		if !ok {
			return nil, fmt.Errorf("line %d: no workload %q", c.Line, c.From)
		}
		from = world.FindPod(w.Deployment()+"-", w.Namespace)
	}
	results := make([]scenario.Result, 0, c.Times)
	request := requestOf(c)
	if c.AtOnce {
		clear(a.served)
		all, err := world.CallAtOnce(from, c.URL, request, c.Times)
		for _, r := range all {
			results = append(results, convert(r, a.served))
		}
		return results, err
	}
	for i := range c.Times {
		clear(a.served)
		r, err := world.Call(from, c.URL, request)
		if err != nil {
			return nil, err
		}
		results = append(results, convert(r, a.served))
		if check != nil {
			if err := check(i, results[i]); err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

func workload(s *scenario.Scenario, name string) (scenario.Workload, bool) {
	for _, w := range s.Workloads {
		if w.Name == name || w.Deployment() == name {
			return w, true
		}
	}
	return scenario.Workload{}, false
}

func convert(r simulate.Result, served map[string]int) scenario.Result {
	out := scenario.Result{
		Status: r.Status, Body: string(r.Body), Header: map[string][]string{}, Took: r.Took, Err: r.Err,
		Mirrored: map[string]int{},
	}
	for _, h := range r.Header {
		out.Header[h[0]] = append(out.Header[h[0]], h[1])
	}
	for _, h := range append(r.Header, r.Trailers...) {
		if h[0] == "grpc-status" {
			out.GRPC = h[1]
		}
	}
	if out.GRPC != "" {
		out.Body = string(scenario.GRPCMessage(r.Body))
	}
	for name, n := range served {
		out.Mirrored[name] = n
	}
	out.ReadSeen()
	for i, hop := range r.Hops {
		out.Flags = append(out.Flags, hop.Flags...)
		out.Details = append(out.Details, hop.Details)
		out.Lines = append(out.Lines, hop.Lines...)
		out.Spans = append(out.Spans, hop.Spans...)
		out.Origins = append(out.Origins, strings.TrimSpace(hop.Origin+" "+hop.Place))
		if i == len(r.Hops)-1 { // the caller's own proxy ends last
			out.Route, out.Attempts = hop.Route, hop.Attempts
		}
	}
	return out
}
