// Package scenario reads the files under scenarios/: the readable
// specification of what Lateen does. One file is one promise: prose, workloads,
// configuration, calls and what must happen to them. Runners (simulate, live)
// turn each Call into a Result and Check compares it with what the file wants.
//
// A file is a txtar archive:
//
//	# Prose: what is promised and why.
//	-- workloads --
//	web
//	reviews v1 x2
//	reviews v2 status=503
//	-- mesh.yaml --
//	(Istio and Kubernetes manifests)
//	-- calls --
//	web -> GET http://reviews:8080/ canary: yes x5
//	  200 from reviews-v2
//	  origin VirtualService/reviews.default mesh.yaml:9
//
// After a call come its expectations, one a line: "STATUS [from DEPLOYMENT|…]",
// "body TEXT", "header NAME[: VALUE|~PART]", "header no NAME", "sees path|host|
// method|header|proto …", "sees no header NAME", "attempts N", "flag FLAG", "details
// TEXT", "grpc STATUS", "route NAME", "origin ID FILE:LINE", "mirrored DEPLOYMENT=N", "takes
// LOW..HIGH", "error TEXT", "span ATTRIBUTE: VALUE" and "log TEXT" (a line of some proxy on
// the way, or live: of the mesh so far) hold for each of its xN requests; "split
// DEPLOYMENT=PERCENT±N …", "statuses STATUS=COUNT …", "mirrors
// DEPLOYMENT=PERCENT±N" and "stays" (one Deployment answers them all) for all
// together. With "xN at once" the requests are sent before the first answer is
// awaited.
//
// A workload line makes a ServiceAccount and Service of its name (once), a
// Deployment NAME-VERSION with labels app and version, and one container port
// 8080 named http. Options: xN replicas, port=N, portname=NAME, ns=NAMESPACE,
// sidecar=off, and behaviour of the application: status=N, delay=D, reset=on,
// first=503x2 (only the first two attempts of a request fail).
//
// The method GRPC makes a unary gRPC call of the method that the URL's path
// names; an application whose status is not 200 answers it with the gRPC status
// of the same meaning.
//
// A call's headers follow its URL, separated by ", ". Some of them are no
// headers: "http: 2" has the client speak HTTP/2, as gRPC always does, with prior
// knowledge; "body: text" is the request's body; "family: 6" (or 4) makes the
// caller look up and dial only addresses of that family; "to: vip" or "to: pod"
// replaces the host by the Service's address or by its first pod's, of that
// family (4 if none is given), as a caller does who knows no names. The last
// two need a network, so only the live runner knows them.
package scenario

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// Scenario is one parsed file.
type Scenario struct {
	Name      string
	Prose     string
	Workloads []Workload
	// Files are the manifests by name, in order.
	Files []File
	Calls []Call
	// Only names the single runner that can run this ("simulate", "live"); the
	// reason must stand in the prose and in scenarios/only.txt.
	Only string
}

// File is one manifest of a scenario. Line is the line of the scenario file
// before its first line, so that positions can be shown either way.
type File struct {
	Name string
	Data []byte
	Line int
}

// Workload is one line of the workloads section.
type Workload struct {
	Name, Version, Namespace string
	Replicas                 int
	Port                     uint16
	PortName                 string
	Sidecar                  bool
	Behaviour                Behaviour
}

// Deployment is the name of the workload's Deployment: NAME-VERSION.
func (w Workload) Deployment() string { return w.Name + "-" + w.Version }

// Behaviour is what the application does with a request.
type Behaviour struct {
	// Status is the answer, 200 by default.
	Status int
	Delay  time.Duration
	// Reset closes the connection instead of answering.
	Reset bool
	// First limits Status, Delay and Reset to the first N attempts of a request.
	First int
}

// Call is one line of the calls section with its expectations.
type Call struct {
	Line    int
	From    string // workload name, or "outside" for a client of the gateway
	Method  string
	URL     string
	Headers [][2]string
	Body    string
	// HTTP2 says that the client speaks it.
	HTTP2 bool
	// Family is 4 or 6 if the caller dials only such addresses, else 0.
	Family int
	// To is "vip" or "pod" if the URL's host stands for an address.
	To string
	// Address is where to connect if not where the URL says; runners set it.
	Address string
	// Fresh gives every request a connection of its own; the live runner sets it
	// for ports that carry opaque connections.
	Fresh bool
	Times int
	// AtOnce sends all requests before the first answer is awaited.
	AtOnce bool
	Wants  []Want
}

// Want is one expectation: the words of an indented line.
type Want struct {
	Line int
	Text string
}

// Parse reads one scenario file.
func Parse(name string, data []byte) (*Scenario, error) {
	archive := txtar.Parse(data)
	s := &Scenario{Name: name, Prose: strings.TrimSpace(string(archive.Comment))}
	for line := range strings.Lines(s.Prose) {
		if only, ok := strings.CutPrefix(strings.TrimSpace(line), "# only: "); ok {
			s.Only = strings.TrimSpace(only)
		}
	}
	for _, f := range archive.Files {
		start := lineOf(data, f.Name)
		var err error
		switch {
		case f.Name == "workloads":
			err = s.parseWorkloads(string(f.Data), start)
		case f.Name == "calls":
			err = s.parseCalls(string(f.Data), start)
		case strings.HasSuffix(f.Name, ".yaml"):
			s.Files = append(s.Files, File{Name: f.Name, Data: f.Data, Line: start})
		default:
			err = fmt.Errorf("unknown section %q: want workloads, calls or a .yaml file", f.Name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if s.Prose == "" || len(s.Calls) == 0 {
		return nil, fmt.Errorf("%s: a scenario needs prose and calls", name)
	}
	return s, nil
}

func lineOf(data []byte, section string) int {
	before, _, _ := strings.Cut(string(data), "-- "+section+" --")
	return strings.Count(before, "\n") + 1
}

func (s *Scenario) parseWorkloads(text string, start int) error {
	for i, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		w := Workload{
			Name: fields[0], Version: "v1", Namespace: "default", Replicas: 1, Port: 8080,
			PortName: "http", Sidecar: true, Behaviour: Behaviour{Status: 200},
		}
		for _, f := range fields[1:] {
			if err := w.option(f); err != nil {
				return fmt.Errorf("line %d: workload %s: %w", start+1+i, w.Name, err)
			}
		}
		s.Workloads = append(s.Workloads, w)
	}
	return nil
}

func (w *Workload) option(f string) error {
	key, value, hasValue := strings.Cut(f, "=")
	var err error
	switch {
	case !hasValue && strings.HasPrefix(f, "x"):
		w.Replicas, err = strconv.Atoi(f[1:])
	case !hasValue && strings.HasPrefix(f, "v"):
		w.Version = f
	case key == "port":
		var n uint64
		n, err = strconv.ParseUint(value, 10, 16)
		w.Port = uint16(n)
	case key == "portname":
		w.PortName = value
	case key == "ns":
		w.Namespace = value
	case key == "sidecar":
		w.Sidecar = value != "off"
	default:
		return w.Behaviour.option(key, value)
	}
	return err
}

func (b *Behaviour) option(key, value string) (err error) {
	switch key {
	case "status":
		b.Status, err = strconv.Atoi(value)
	case "delay":
		b.Delay, err = time.ParseDuration(value)
	case "reset":
		b.Reset = value == "on"
	case "first":
		status, times, ok := strings.Cut(value, "x")
		if !ok {
			return fmt.Errorf("first=%s: want STATUSxN, for example first=503x2", value)
		}
		if status == "reset" {
			b.Reset = true
		} else if b.Status, err = strconv.Atoi(status); err != nil {
			return err
		}
		b.First, err = strconv.Atoi(times)
	default:
		return fmt.Errorf("unknown option %q", key)
	}
	return err
}

func (s *Scenario) parseCalls(text string, start int) error {
	for i, line := range strings.Split(text, "\n") {
		n := start + 1 + i
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "" || strings.HasPrefix(trimmed, "#"):
		case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
			if len(s.Calls) == 0 {
				return fmt.Errorf("line %d: expectation before the first call", n)
			}
			c := &s.Calls[len(s.Calls)-1]
			c.Wants = append(c.Wants, Want{Line: n, Text: trimmed})
		default:
			c, err := parseCall(trimmed)
			if err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
			c.Line = n
			s.Calls = append(s.Calls, c)
		}
	}
	for _, c := range s.Calls {
		if len(c.Wants) == 0 {
			return fmt.Errorf("line %d: a call without expectation cannot fail", c.Line)
		}
	}
	return nil
}

// parseCall reads "web -> GET http://host/path name: value, name: value xN [at once]".
func parseCall(line string) (Call, error) {
	from, rest, ok := strings.Cut(line, " -> ")
	if !ok {
		return Call{}, fmt.Errorf("call %q: want FROM -> METHOD URL [name: value, …] [xN]", line)
	}
	c := Call{From: strings.TrimSpace(from), Times: 1}
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return Call{}, fmt.Errorf("call %q: want a method and a URL", line)
	}
	c.Method, c.URL = fields[0], fields[1]
	c.HTTP2 = c.GRPC()
	rest = strings.Join(fields[2:], " ")
	rest, c.AtOnce = strings.CutSuffix(rest, " at once")
	if i := strings.LastIndex(rest, "x"); i >= 0 && (i == 0 || rest[i-1] == ' ') {
		if n, err := strconv.Atoi(rest[i+1:]); err == nil {
			c.Times, rest = n, strings.TrimSpace(rest[:i])
		}
	}
	for _, h := range strings.Split(rest, ", ") {
		if h = strings.TrimSpace(h); h == "" {
			continue
		}
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return Call{}, fmt.Errorf("call %q: header %q: want name: value", line, h)
		}
		special, err := c.option(name, strings.TrimSpace(value))
		if err != nil {
			return Call{}, fmt.Errorf("call %q: %w", line, err)
		}
		if special {
			continue
		}
		c.Headers = append(c.Headers, [2]string{strings.TrimSpace(name), strings.TrimSpace(value)})
	}
	return c, nil
}

// option reads what looks like a header and is none.
func (c *Call) option(name, value string) (special bool, err error) {
	switch name {
	case "body":
		c.Body = value
	case "family":
		if c.Family, err = strconv.Atoi(value); err != nil || c.Family != 4 && c.Family != 6 {
			return true, fmt.Errorf("family %q: want 4 or 6", value)
		}
	case "http":
		if c.HTTP2 = value == "2"; !c.HTTP2 {
			return true, fmt.Errorf("http %q: want 2", value)
		}
	case "to":
		if c.To = value; value != "vip" && value != "pod" {
			return true, fmt.Errorf("to %q: want vip or pod", value)
		}
	default:
		return false, nil
	}
	return true, nil
}

func parseDelay(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("read delay %q: %w", text, err)
	}
	return d, nil
}
