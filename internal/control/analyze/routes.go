package analyze

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// routes checks what VirtualServices lead to and whether their rules are
// reached.
func (r *run) routes() {
	claimed := map[string]*mesh.VirtualService{}
	for _, o := range r.objects {
		vs, ok := o.Spec.(*networkingpb.VirtualService)
		if !ok {
			continue
		}
		r.routeTargets(o, vs)
		r.reach(o, vs)
		r.boundGateways(o, vs)
	}
	for _, vs := range r.mesh.VirtualServices() {
		r.conflicts(vs, claimed)
	}
}

// routeTargets checks every destination of a VirtualService.
func (r *run) routeTargets(o *resource.Object, vs *networkingpb.VirtualService) {
	for i, route := range vs.Http {
		base := fmt.Sprintf("spec.http[%d]", i)
		for j, d := range route.Route {
			r.target(o, fmt.Sprintf("%s.route[%d].destination", base, j), d.Destination)
		}
		if route.Mirror != nil {
			r.target(o, base+".mirror", route.Mirror)
		}
		for j, d := range route.Mirrors {
			r.target(o, fmt.Sprintf("%s.mirrors[%d].destination", base, j), d.Destination)
		}
		if d := route.Delegate; d != nil {
			r.delegate(o, base+".delegate", d)
		}
	}
	list := func(base string, routes []*networkingpb.RouteDestination) {
		for j, d := range routes {
			r.target(o, fmt.Sprintf("%s.route[%d].destination", base, j), d.Destination)
		}
	}
	for i, route := range vs.Tls {
		list(fmt.Sprintf("spec.tls[%d]", i), route.Route)
	}
	for i, route := range vs.Tcp {
		list(fmt.Sprintf("spec.tcp[%d]", i), route.Route)
	}
}

func (r *run) delegate(o *resource.Object, path string, d *networkingpb.Delegate) {
	ns := d.Namespace
	if ns == "" {
		ns = o.Namespace
	}
	if r.byKey[resource.Key{Kind: resource.VirtualService, Namespace: ns, Name: d.Name}] == nil {
		r.addValue(o, finding.DestinationMissing, path+".name", "", "delegate VirtualService %s.%s does not exist", d.Name, ns)
	}
}

// target checks one destination: host, port and subset.
func (r *run) target(o *resource.Object, path string, d *networkingpb.Destination) {
	if d.GetHost() == "" {
		return
	}
	host := r.mesh.ResolveHost(d.Host, o.Namespace)
	s, ok := r.serviceFor(host, o.Namespace)
	if !ok {
		r.addValue(o, finding.DestinationMissing, path+".host", r.hostHint(d.Host, o.Namespace), "host %q does not exist in the mesh", d.Host)
		return
	}
	switch n := d.Port.GetNumber(); {
	case n == 0:
		if len(s.Ports) > 1 && o.Has(path) {
			r.portRequired(o, path, s)
		}
	case n <= 65535:
		if _, ok := s.Port(uint16(n)); !ok {
			r.addValue(o, finding.DestinationPort, path+".port.number", "it has "+portList(s), "%s has no port %d", s.Host, n)
		}
	}
	if d.Subset != "" {
		r.subset(o, path+".subset", d.Subset, s)
	}
}

// portRequired reports a destination without a port for a host with several,
// unless every port has the same meaning to the route: Istio takes the port of
// the request then.
func (r *run) portRequired(o *resource.Object, path string, s *mesh.Service) {
	if vs, ok := o.Spec.(*networkingpb.VirtualService); ok {
		for _, h := range vs.Hosts {
			if r.mesh.ResolveHost(h, o.Namespace) == s.Host {
				return
			}
		}
	}
	r.add(o, finding.PortRequired, path, "add port.number; it has "+portList(s), "%s has several ports and the destination names none", s.Host)
}

func portList(s *mesh.Service) string {
	if len(s.Ports) == 0 {
		return "no ports"
	}
	var list []string
	for _, p := range s.Ports {
		list = append(list, fmt.Sprint(p.Number))
	}
	return "port " + strings.Join(list, ", ")
}

func (r *run) subset(o *resource.Object, path, name string, s *mesh.Service) {
	var names []string
	var rule *resource.Object
	for _, dr := range r.mesh.DestinationRules() {
		if !mesh.HostMatches(dr.Host, s.Host) {
			continue
		}
		if _, ok := dr.Subset(name); ok {
			return
		}
		rule = dr.Object
		for _, sub := range dr.Subsets {
			names = append(names, sub.Subset.GetName())
		}
	}
	if rule == nil {
		r.addValue(o, finding.SubsetMissing, path, "write a DestinationRule for "+s.Host+" with this subset",
			"subset %q: no DestinationRule defines subsets of %s", name, s.Host)
		return
	}
	hint := fmt.Sprintf("add it to %s (%s)", rule.Key, rule.Pos("spec.subsets"))
	if near := resource.Nearest(name, names); near != "" {
		hint += fmt.Sprintf("; or did you mean %q?", near)
	}
	r.addValue(o, finding.SubsetMissing, path, hint, "no DestinationRule of %s defines subset %q", s.Host, name)
}

// reach finds HTTP rules that an earlier rule of the same object takes
// everything from.
func (r *run) reach(o *resource.Object, vs *networkingpb.VirtualService) {
	all := -1
	seen := map[int][]*networkingpb.HTTPMatchRequest{}
	for i, route := range vs.Http {
		path := fmt.Sprintf("spec.http[%d]", i)
		if all >= 0 {
			r.add(o, finding.UnreachableRule, path, fmt.Sprintf("move spec.http[%d] to the end", all),
				"this rule is never reached: spec.http[%d] matches every request", all)
			continue
		}
		if takesAll(route) {
			all = i
			continue
		}
		covered := -1
		for j := range i {
			if subsumed(route.Match, seen[j]) {
				covered = j
				break
			}
		}
		if covered >= 0 {
			r.add(o, finding.UnreachableRule, path, "", "this rule is never reached: spec.http[%d] has the same matches", covered)
		}
		seen[i] = route.Match
	}
	if n := len(vs.Http); n > 0 && all < 0 && len(vs.Hosts) > 0 {
		r.add(o, finding.NoCatchAll, fmt.Sprintf("spec.http[%d]", n-1), "add a last rule without match if that is not meant",
			"requests that match no rule get 404")
	}
}

func takesAll(route *networkingpb.HTTPRoute) bool {
	if len(route.Match) == 0 {
		return true
	}
	for _, m := range route.Match {
		rest := proto.Clone(m).(*networkingpb.HTTPMatchRequest)
		if rest.Uri.GetPrefix() == "/" {
			rest.Uri = nil
		}
		rest.Name, rest.StatPrefix = "", ""
		if proto.Equal(rest, &networkingpb.HTTPMatchRequest{}) {
			return true
		}
	}
	return false
}

// subsumed reports whether each of matches is among earlier.
func subsumed(matches, earlier []*networkingpb.HTTPMatchRequest) bool {
	if len(matches) == 0 || len(earlier) == 0 {
		return false
	}
	for _, m := range matches {
		found := false
		for _, e := range earlier {
			a, b := proto.Clone(m).(*networkingpb.HTTPMatchRequest), proto.Clone(e).(*networkingpb.HTTPMatchRequest)
			a.Name, b.Name = "", ""
			found = found || proto.Equal(a, b)
		}
		if !found {
			return false
		}
	}
	return true
}

// conflicts finds VirtualServices for the same host on sidecars, of which only
// the first applies.
func (r *run) conflicts(vs *mesh.VirtualService, claimed map[string]*mesh.VirtualService) {
	if vs.Delegate {
		return
	}
	onMesh := false
	for _, g := range vs.Gateways {
		onMesh = onMesh || g == "mesh"
	}
	if !onMesh {
		return
	}
	for i, h := range vs.Hosts {
		first := claimed[h]
		if first == nil {
			claimed[h] = vs
			continue
		}
		if first.Object == vs.Object || !first.ExportTo.Allows(first.Namespace, vs.Namespace) && !vs.ExportTo.Allows(vs.Namespace, first.Namespace) {
			continue
		}
		r.addValue(vs.Object, finding.ConflictingHosts, fmt.Sprintf("spec.hosts[%d]", i), "put the rules into one VirtualService",
			"host %q already has %s (%s), which wins", h, first.Object.Key, first.Object.Pos("spec.hosts"))
	}
}

// boundGateways checks that the gateways a VirtualService names exist and serve
// its hosts.
func (r *run) boundGateways(o *resource.Object, vs *networkingpb.VirtualService) {
	for i, name := range vs.Gateways {
		if name == "mesh" {
			continue
		}
		path := fmt.Sprintf("spec.gateways[%d]", i)
		full := name
		if !strings.Contains(name, "/") {
			full = o.Namespace + "/" + name
		}
		g, ok := r.mesh.GatewayByName(full)
		if !ok {
			var names []string
			for _, have := range r.mesh.Gateways() {
				names = append(names, have.FullName(), have.Name)
			}
			hint := ""
			if near := resource.Nearest(name, names); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			r.addValue(o, finding.GatewayMissing, path, hint, "gateway %q does not exist", full)
			continue
		}
		for j, h := range vs.Hosts {
			if !served(g, h, o.Namespace) {
				r.addValue(o, finding.HostNotInGateway, fmt.Sprintf("spec.hosts[%d]", j), "",
					"host %q is not among the hosts of %s", h, g.Object.Key)
			}
		}
	}
}

func served(g *mesh.Gateway, host, namespace string) bool {
	for _, s := range g.Spec.Servers {
		for _, h := range s.Hosts {
			ns, name, ok := strings.Cut(h, "/")
			if !ok {
				ns, name = "*", h
			}
			if ns == "." {
				ns = g.Namespace
			}
			if (ns == "*" || ns == namespace) && mesh.HostsOverlap(name, host) {
				return true
			}
		}
	}
	return false
}

// destinationRules checks that the hosts exist and the subsets select someone.
func (r *run) destinationRules() {
	for _, o := range r.objects {
		dr, ok := o.Spec.(*networkingpb.DestinationRule)
		if !ok || dr.Host == "" {
			continue
		}
		host := r.mesh.ResolveHost(dr.Host, o.Namespace)
		s, known := r.serviceFor(host, o.Namespace)
		if !known && mesh.IsWildcard(host) {
			for _, have := range r.mesh.Services() {
				known = known || mesh.HostMatches(host, have.Host)
			}
		}
		if !known {
			r.addValue(o, finding.RuleHostMissing, "spec.host", r.hostHint(dr.Host, o.Namespace), "host %q does not exist in the mesh", dr.Host)
			continue
		}
		if s != nil {
			r.subsetPods(o, dr, s)
		}
	}
}

func (r *run) subsetPods(o *resource.Object, dr *networkingpb.DestinationRule, s *mesh.Service) {
	for i, sub := range dr.Subsets {
		if len(sub.Labels) == 0 {
			continue
		}
		found := false
		for _, e := range r.mesh.Endpoints(s) {
			found = found || covers(sub.Labels, e.Labels)
		}
		if len(s.Selector) > 0 {
			for _, t := range r.selected(s.Namespace, s.Selector) {
				found = found || covers(sub.Labels, t.Labels)
			}
		} else if s.Registry == mesh.Kubernetes {
			continue // endpoints are written by hand, and may come later
		}
		if !found {
			r.add(o, finding.SubsetEmpty, fmt.Sprintf("spec.subsets[%d]", i), "requests routed to it get 503 until a pod has these labels",
				"subset %q selects no pod of %s: none has %s", sub.Name, s.Host, labelText(sub.Labels))
		}
	}
}

func labelText(labels map[string]string) string {
	var parts []string
	for _, k := range sortedKeys(labels) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}
