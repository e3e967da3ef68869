package mesh

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/resource"
)

// MeshGateway is the name that stands for all sidecars in spec.gateways.
const MeshGateway = "mesh"

func (m *Mesh) readVirtualServices(byKind map[resource.Kind][]*resource.Object) {
	raw := map[string]*resource.Object{}
	for _, o := range byKind["VirtualService"] {
		raw[o.Namespace+"/"+o.Name] = o
	}
	for _, o := range byKind["VirtualService"] {
		spec, ok := o.Spec.(*networkingpb.VirtualService)
		if !ok {
			continue
		}
		m.virtualServices = append(m.virtualServices, m.virtualService(o, spec, raw))
	}
}

func (m *Mesh) virtualService(o *resource.Object, spec *networkingpb.VirtualService, raw map[string]*resource.Object) *VirtualService {
	v := &VirtualService{
		Name: o.Name, Namespace: o.Namespace, Object: o, Delegate: len(spec.GetHosts()) == 0,
		ExportTo: parseVisibility(spec.GetExportTo(), m.Config.GetDefaultVirtualServiceExportTo()),
	}
	for _, h := range spec.GetHosts() {
		v.Hosts = append(v.Hosts, m.ResolveHost(h, o.Namespace))
	}
	for _, g := range spec.GetGateways() {
		v.Gateways = append(v.Gateways, ResolveGateway(g, o.Namespace))
	}
	if len(v.Gateways) == 0 {
		v.Gateways = []string{MeshGateway}
	}
	for i, r := range spec.GetHttp() {
		at := Origin{Object: o, Path: "spec.http[" + strconv.Itoa(i) + "]"}
		if d := r.GetDelegate(); d != nil {
			v.HTTP = append(v.HTTP, m.delegated(o, r, d, raw)...)
			continue
		}
		v.HTTP = append(v.HTTP, HTTPRoute{Route: m.resolveHTTP(r, o.Namespace), Origin: at})
	}
	for i, r := range spec.GetTls() {
		c := proto.CloneOf(r)
		for _, match := range c.GetMatch() {
			resolveGateways(match.GetGateways(), o.Namespace)
		}
		m.resolveDestinations(c.GetRoute(), o.Namespace)
		v.TLS = append(v.TLS, TLSRoute{Route: c, Origin: Origin{Object: o, Path: "spec.tls[" + strconv.Itoa(i) + "]"}})
	}
	for i, r := range spec.GetTcp() {
		c := proto.CloneOf(r)
		for _, match := range c.GetMatch() {
			resolveGateways(match.GetGateways(), o.Namespace)
		}
		m.resolveDestinations(c.GetRoute(), o.Namespace)
		v.TCP = append(v.TCP, TCPRoute{Route: c, Origin: Origin{Object: o, Path: "spec.tcp[" + strconv.Itoa(i) + "]"}})
	}
	return v
}

// ResolveGateway returns "mesh" or "namespace/name" for a gateway as an object
// of the given namespace writes it; the old form name.namespace.svc… is
// understood.
func ResolveGateway(name, namespace string) string {
	switch {
	case name == MeshGateway || strings.Contains(name, "/"):
		return name
	case strings.Contains(name, "."):
		base, rest, _ := strings.Cut(name, ".")
		ns, _, _ := strings.Cut(rest, ".")
		return ns + "/" + base
	}
	return namespace + "/" + name
}

func resolveGateways(list []string, namespace string) {
	for i, g := range list {
		list[i] = ResolveGateway(g, namespace)
	}
}

func (m *Mesh) resolveDestinations(list []*networkingpb.RouteDestination, namespace string) {
	for _, r := range list {
		m.resolveDestination(r.GetDestination(), namespace)
	}
}

func (m *Mesh) resolveDestination(d *networkingpb.Destination, namespace string) {
	if d != nil {
		d.Host = m.ResolveHost(d.GetHost(), namespace)
	}
}

// resolveHTTP returns a copy of r in which every name is fully qualified.
func (m *Mesh) resolveHTTP(r *networkingpb.HTTPRoute, namespace string) *networkingpb.HTTPRoute {
	c := proto.CloneOf(r)
	for _, match := range c.GetMatch() {
		resolveGateways(match.GetGateways(), namespace)
	}
	for _, d := range c.GetRoute() {
		m.resolveDestination(d.GetDestination(), namespace)
	}
	m.resolveDestination(c.GetMirror(), namespace)
	for _, d := range c.GetMirrors() {
		m.resolveDestination(d.GetDestination(), namespace)
	}
	return c
}

// delegated merges the routes of a delegate under the route that delegates, as
// Istio does: matches are combined, and the root's settings win over the
// delegate's. A delegate that does not exist, is not visible, or whose matches
// contradict the root's contributes nothing.
func (m *Mesh) delegated(root *resource.Object, r *networkingpb.HTTPRoute, d *networkingpb.Delegate, raw map[string]*resource.Object) []HTTPRoute {
	ns := d.GetNamespace()
	if ns == "" {
		ns = root.Namespace
	}
	o := raw[ns+"/"+d.GetName()]
	if o == nil {
		return nil
	}
	spec, ok := o.Spec.(*networkingpb.VirtualService)
	if !ok || len(spec.GetHosts()) > 0 {
		return nil
	}
	if !parseVisibility(spec.GetExportTo(), m.Config.GetDefaultVirtualServiceExportTo()).Allows(o.Namespace, root.Namespace) {
		return nil
	}
	rootRoute := m.resolveHTTP(r, root.Namespace)
	var out []HTTPRoute
	for i, dr := range spec.GetHttp() {
		if dr.GetDelegate() != nil {
			continue // delegates of delegates are not allowed
		}
		merged := m.resolveHTTP(dr, o.Namespace)
		matches, ok := mergeMatches(rootRoute.GetMatch(), merged.GetMatch())
		if !ok {
			continue
		}
		merged.Match = matches
		mergeRoot(merged, rootRoute)
		out = append(out, HTTPRoute{Route: merged, Origin: Origin{Object: o, Path: "spec.http[" + strconv.Itoa(i) + "]"}})
	}
	return out
}

// mergeRoot lets the root's settings win over the delegate's.
func mergeRoot(d, root *networkingpb.HTTPRoute) {
	switch {
	case root.GetName() != "" && d.GetName() != "":
		d.Name = root.GetName() + "-" + d.GetName()
	case root.GetName() != "":
		d.Name = root.GetName()
	}
	if root.GetRewrite() != nil {
		d.Rewrite = root.GetRewrite()
	}
	if root.GetTimeout() != nil {
		d.Timeout = root.GetTimeout()
	}
	if root.GetRetries() != nil {
		d.Retries = root.GetRetries()
	}
	if root.GetFault() != nil {
		d.Fault = root.GetFault()
	}
	if root.GetMirror() != nil {
		d.Mirror = root.GetMirror()
	}
	if root.GetMirrorPercent() != nil {
		d.MirrorPercent = root.GetMirrorPercent()
	}
	if root.GetMirrorPercentage() != nil {
		d.MirrorPercentage = root.GetMirrorPercentage()
	}
	if len(root.GetMirrors()) > 0 {
		d.Mirrors = root.GetMirrors()
	}
	if root.GetCorsPolicy() != nil {
		d.CorsPolicy = root.GetCorsPolicy()
	}
	if root.GetHeaders() != nil {
		d.Headers = mergeHeaders(root.GetHeaders(), d.GetHeaders())
	}
}

func mergeHeaders(root, d *networkingpb.Headers) *networkingpb.Headers {
	return &networkingpb.Headers{
		Request:  mergeHeaderOps(root.GetRequest(), d.GetRequest()),
		Response: mergeHeaderOps(root.GetResponse(), d.GetResponse()),
	}
}

func mergeHeaderOps(root, d *networkingpb.Headers_HeaderOperations) *networkingpb.Headers_HeaderOperations {
	if root == nil || d == nil {
		if root == nil {
			return d
		}
		return root
	}
	out := &networkingpb.Headers_HeaderOperations{
		Set: maps.Clone(d.GetSet()), Add: maps.Clone(d.GetAdd()), Remove: slices.Concat(root.GetRemove(), d.GetRemove()),
	}
	for k, v := range root.GetSet() {
		if out.Set == nil {
			out.Set = map[string]string{}
		}
		out.Set[k] = v
	}
	for k, v := range root.GetAdd() {
		if out.Add == nil {
			out.Add = map[string]string{}
		}
		out.Add[k] = v
	}
	return out
}

// mergeMatches combines each match of the root with each of the delegate. It
// returns false when no combination can match anything.
func mergeMatches(root, delegate []*networkingpb.HTTPMatchRequest) ([]*networkingpb.HTTPMatchRequest, bool) {
	if len(root) == 0 {
		return delegate, true
	}
	if len(delegate) == 0 {
		return root, true
	}
	var out []*networkingpb.HTTPMatchRequest
	for _, a := range root {
		for _, b := range delegate {
			if c, ok := mergeMatch(a, b); ok {
				out = append(out, c)
			}
		}
	}
	return out, len(out) > 0
}

func mergeMatch(root, d *networkingpb.HTTPMatchRequest) (*networkingpb.HTTPMatchRequest, bool) {
	if conflicting(root, d) {
		return nil, false
	}
	out := proto.CloneOf(d)
	switch {
	case root.GetName() != "" && d.GetName() != "":
		out.Name = root.GetName() + "-" + d.GetName()
	case root.GetName() != "":
		out.Name = root.GetName()
	}
	if out.Uri == nil {
		out.Uri, out.IgnoreUriCase = root.GetUri(), root.GetIgnoreUriCase()
	}
	if out.Scheme == nil {
		out.Scheme = root.GetScheme()
	}
	if out.Method == nil {
		out.Method = root.GetMethod()
	}
	if out.Authority == nil {
		out.Authority = root.GetAuthority()
	}
	if out.Port == 0 {
		out.Port = root.GetPort()
	}
	if out.SourceNamespace == "" {
		out.SourceNamespace = root.GetSourceNamespace()
	}
	if out.StatPrefix == "" {
		out.StatPrefix = root.GetStatPrefix()
	}
	if len(out.Gateways) == 0 {
		out.Gateways = root.GetGateways()
	}
	out.Headers = mergeInto(out.Headers, root.GetHeaders())
	out.WithoutHeaders = mergeInto(out.WithoutHeaders, root.GetWithoutHeaders())
	out.QueryParams = mergeInto(out.QueryParams, root.GetQueryParams())
	out.SourceLabels = mergeInto(out.SourceLabels, root.GetSourceLabels())
	return out, true
}

func mergeInto[V any](dst, src map[string]V) map[string]V {
	if dst == nil && len(src) > 0 {
		dst = map[string]V{}
	}
	for k, v := range src {
		dst[k] = v
	}
	return dst
}

// conflicting reports whether a delegate's match asks for something that the
// root's match does not admit.
func conflicting(root, d *networkingpb.HTTPMatchRequest) bool {
	if stringsConflict(root.GetUri(), d.GetUri()) || stringsConflict(root.GetScheme(), d.GetScheme()) ||
		stringsConflict(root.GetMethod(), d.GetMethod()) || stringsConflict(root.GetAuthority(), d.GetAuthority()) {
		return true
	}
	for _, pair := range []struct {
		a, b map[string]*networkingpb.StringMatch
	}{
		{root.GetHeaders(), d.GetHeaders()},
		{root.GetWithoutHeaders(), d.GetWithoutHeaders()},
		{root.GetQueryParams(), d.GetQueryParams()},
	} {
		for k, v := range pair.b {
			if have := pair.a[k]; have != nil && stringsConflict(have, v) {
				return true
			}
		}
	}
	if root.GetIgnoreUriCase() != d.GetIgnoreUriCase() && root.GetUri() != nil && d.GetUri() != nil {
		return true
	}
	if root.GetPort() > 0 && d.GetPort() > 0 && root.GetPort() != d.GetPort() {
		return true
	}
	for k, v := range d.GetSourceLabels() {
		if have, ok := root.GetSourceLabels()[k]; ok && have != v {
			return true
		}
	}
	return root.GetSourceNamespace() != "" && d.GetSourceNamespace() != "" && root.GetSourceNamespace() != d.GetSourceNamespace()
}

// stringsConflict reports whether leaf is not narrower than root. Regular
// expressions cannot be compared; Istio treats them as conflicting.
func stringsConflict(root, leaf *networkingpb.StringMatch) bool {
	if root == nil || leaf == nil {
		return false
	}
	if root.GetRegex() != "" || leaf.GetRegex() != "" {
		return true
	}
	if p := root.GetPrefix(); p != "" {
		return !strings.HasPrefix(leaf.GetPrefix()+leaf.GetExact(), p)
	}
	if e := root.GetExact(); e != "" {
		return leaf.GetExact() != e
	}
	return false
}

// VirtualServicesFor returns the VirtualServices that proxies of a namespace
// use for a gateway ("mesh" or "namespace/name"), in order of precedence: first
// those that only this namespace sees, then those exported to it by name, then
// the public ones; the oldest first in each group.
func (m *Mesh) VirtualServicesFor(namespace, gateway string) []*VirtualService {
	var own, exported, public []*VirtualService
	for _, v := range m.virtualServices {
		if v.Delegate || !slices.Contains(v.Gateways, gateway) || !v.ExportTo.Allows(v.Namespace, namespace) {
			continue
		}
		switch {
		case v.ExportTo.all:
			public = append(public, v)
		case v.Namespace == namespace && v.ExportTo.own:
			own = append(own, v)
		default:
			exported = append(exported, v)
		}
	}
	return slices.Concat(own, exported, public)
}
