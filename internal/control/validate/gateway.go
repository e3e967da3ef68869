package validate

import (
	"net/netip"
	"strconv"
	"strings"

	networkingv1 "istio.io/api/networking/v1"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// protocols are the names a port's protocol may have, without regard to case.
func protocols() []string {
	return []string{"HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS", "UDP", "MYSQL", "REDIS", "HTTP_PROXY"}
}

func (c *checker) port(path string, number uint32, protocol, name string) {
	if number == 0 || number > 65535 {
		c.addValue(finding.OutOfRange, path+".number", "", "port %d is not from 1 to 65535", number)
	}
	if protocol != "" && !contains(protocols(), strings.ToUpper(protocol)) {
		hint := ""
		if near := resource.Nearest(strings.ToUpper(protocol), protocols()); near != "" {
			hint = "did you mean " + near + "?"
		}
		c.addValue(finding.InvalidProtocol, path+".protocol", hint, "%q is not a protocol; known are %s", protocol, strings.Join(protocols(), ", "))
	}
	if name != "" && !dnsLabel.MatchString(name) {
		c.addValue(finding.InvalidReference, path+".name", "", "%q is not a valid port name", name)
	}
}

// gateway holds Istio's rules for a Gateway beyond its CRD.
func (c *checker) gateway(g *networkingv1.Gateway) {
	if len(g.Servers) == 0 {
		c.add(finding.RequiredField, "spec", "", "the Gateway has no servers")
	}
	c.labels("spec.selector", g.Selector)
	names := map[string]bool{}
	for i, s := range g.Servers {
		path := at("spec.servers", "[%d]", i)
		if s.Port != nil {
			c.port(path+".port", s.Port.Number, s.Port.Protocol, s.Port.Name)
		}
		if s.Name != "" && names[s.Name] {
			c.addValue(finding.InvalidReference, path+".name", "", "server name %q is used twice", s.Name)
		}
		names[s.Name] = true
		if strings.HasPrefix(s.Bind, "unix://") && s.Port.GetNumber() != 0 {
			c.addValue(finding.InvalidReference, path+".bind", "", "a server on a unix socket has no port number")
		}
		if len(s.Hosts) == 0 {
			c.add(finding.RequiredField, path, "", "%s has no hosts", path)
		}
		for j, h := range s.Hosts {
			c.gatewayHost(at(path, ".hosts[%d]", j), h)
		}
		c.serverTLS(path, s)
	}
}

// gatewayHost checks "host" and "namespace/host".
func (c *checker) gatewayHost(path, h string) {
	ns, host, ok := strings.Cut(h, "/")
	if !ok {
		ns, host = "*", h
	}
	if ns != "*" && ns != "." && !dnsLabel.MatchString(ns) {
		c.addValue(finding.InvalidHost, path, `write "host" or "namespace/host"`, "%q is not a namespace", ns)
	}
	c.host(path, host)
}

func (c *checker) serverTLS(path string, s *networkingv1.Server) {
	protocol := strings.ToUpper(s.Port.GetProtocol())
	t, at := s.Tls, path+".tls"
	encrypted := protocol == "HTTPS" || protocol == "TLS"
	switch {
	case t == nil && encrypted:
		c.add(finding.InvalidTLS, path, "add tls with mode and credentialName", "%s speaks %s, which needs tls", path, protocol)
		return
	case t == nil:
		return
	case !encrypted && (protocol == "HTTP" || protocol == "HTTP2" || protocol == "GRPC") && !t.HttpsRedirect:
		c.add(finding.InvalidTLS, at, "use protocol HTTPS, or only httpsRedirect here", "%s speaks %s, so tls has no effect", path, protocol)
		return
	case t.HttpsRedirect && encrypted:
		c.add(finding.InvalidTLS, at+".httpsRedirect", "put it on the HTTP server", "httpsRedirect on %s has no effect: its clients use TLS already", protocol)
	}
	if !encrypted {
		return
	}
	credential := t.CredentialName != "" || len(t.CredentialNames) > 0 || len(t.TlsCertificates) > 0
	switch t.Mode {
	case networkingv1alpha3.ServerTLSSettings_SIMPLE, networkingv1alpha3.ServerTLSSettings_MUTUAL, networkingv1alpha3.ServerTLSSettings_OPTIONAL_MUTUAL:
		if !credential && (t.ServerCertificate == "" || t.PrivateKey == "") {
			c.add(finding.InvalidTLS, at, "set credentialName", "mode %s needs credentialName, or serverCertificate and privateKey", t.Mode)
		}
		if t.Mode != networkingv1alpha3.ServerTLSSettings_SIMPLE && !credential && t.CaCertificates == "" && t.CaCertCredentialName == "" {
			c.add(finding.InvalidTLS, at, "set caCertificates", "mode %s needs an authority to verify clients against", t.Mode)
		}
	case networkingv1alpha3.ServerTLSSettings_PASSTHROUGH, networkingv1alpha3.ServerTLSSettings_AUTO_PASSTHROUGH:
		if credential || t.ServerCertificate != "" {
			c.add(finding.InvalidTLS, at, "", "mode %s never opens the TLS connection, so certificates have no effect", t.Mode)
		}
		if t.Mode == networkingv1alpha3.ServerTLSSettings_AUTO_PASSTHROUGH {
			c.addValue(finding.FieldNotApplied, at+".mode", "", "mode AUTO_PASSTHROUGH is read and not applied by this version of Lateen: the server is not opened")
		}
	}
}

// serviceEntry holds Istio's rules for a ServiceEntry beyond its CRD.
func (c *checker) serviceEntry(s *networkingv1.ServiceEntry) {
	wildcard := false
	for i, h := range s.Hosts {
		c.host(at("spec.hosts", "[%d]", i), h)
		wildcard = wildcard || strings.HasPrefix(h, "*.")
	}
	for i, a := range s.Addresses {
		if !validAddress(a) {
			c.addValue(finding.InvalidAddress, at("spec.addresses", "[%d]", i), "", "%q is neither an address nor a CIDR block", a)
		}
	}
	ports := map[string]bool{}
	for i, p := range s.Ports {
		path := at("spec.ports", "[%d]", i)
		c.port(path, p.Number, p.Protocol, p.Name)
		if p.Name != "" && ports[p.Name] {
			c.addValue(finding.InvalidReference, path+".name", "", "port name %q is used twice", p.Name)
		}
		ports[p.Name] = true
	}
	if len(s.Ports) == 0 && len(s.Addresses) == 0 {
		c.add(finding.RequiredField, "spec", "", "the ServiceEntry has no ports")
	}
	c.resolution(s, wildcard)
	for i, e := range s.Endpoints {
		c.endpoint(at("spec.endpoints", "[%d]", i), e, s.Resolution, ports)
	}
	c.exportTo("spec.exportTo", s.ExportTo)
}

func (c *checker) resolution(s *networkingv1.ServiceEntry, wildcard bool) {
	none := len(s.Endpoints) == 0 && s.WorkloadSelector == nil
	switch s.Resolution {
	case networkingv1alpha3.ServiceEntry_STATIC:
		if none && len(s.Addresses) == 0 {
			c.add(finding.InvalidResolution, "spec.resolution", "list endpoints, or use resolution DNS", "resolution STATIC needs endpoints, a workloadSelector or addresses")
		}
	case networkingv1alpha3.ServiceEntry_DYNAMIC_DNS:
		c.addValue(finding.FieldNotApplied, "spec.resolution", "", "resolution DYNAMIC_DNS is read and not applied by this version of Lateen: the hosts cannot be called")
	case networkingv1alpha3.ServiceEntry_DNS, networkingv1alpha3.ServiceEntry_DNS_ROUND_ROBIN:
		if none && wildcard {
			c.add(finding.InvalidResolution, "spec.resolution", "use resolution NONE or DYNAMIC_DNS, or list endpoints",
				"resolution %s cannot look up a wildcard host", s.Resolution)
		}
	}
}

func (c *checker) endpoint(path string, e *networkingv1.WorkloadEntry, r networkingv1.ServiceEntry_Resolution, ports map[string]bool) {
	for _, name := range sorted(e.Ports) {
		if !ports[name] {
			c.add(finding.InvalidReference, resource.Field(path+".ports", name), "", "the ServiceEntry has no port named %q", name)
		}
	}
	c.labels(path+".labels", e.Labels)
	switch _, err := netip.ParseAddr(e.Address); {
	case e.Address == "", strings.HasPrefix(e.Address, "unix://"):
	case err == nil:
	case r == networkingv1alpha3.ServiceEntry_STATIC:
		c.addValue(finding.InvalidAddress, path+".address", "use resolution DNS for names", "with resolution STATIC, %q must be an IP address", e.Address)
	default:
		c.host(path+".address", e.Address)
	}
}

func validAddress(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	_, err := netip.ParsePrefix(s)
	return err == nil
}

// sidecar holds Istio's rules for a Sidecar beyond its CRD.
func (c *checker) sidecar(s *networkingv1.Sidecar) {
	if len(s.Egress) == 0 && len(s.Ingress) == 0 && s.OutboundTrafficPolicy == nil && s.InboundConnectionPool == nil {
		c.add(finding.RequiredField, "spec", "", "the Sidecar configures neither egress nor ingress")
	}
	for i, e := range s.Egress {
		path := at("spec.egress", "[%d]", i)
		if e.Port != nil {
			c.port(path+".port", e.Port.Number, e.Port.Protocol, e.Port.Name)
		}
		for j, h := range e.Hosts {
			c.egressHost(at(path, ".hosts[%d]", j), h)
		}
	}
	for i, in := range s.Ingress {
		path := at("spec.ingress", "[%d]", i)
		c.port(path+".port", in.Port.GetNumber(), in.Port.GetProtocol(), in.Port.GetName())
		c.defaultEndpoint(path+".defaultEndpoint", in.DefaultEndpoint)
	}
}

func (c *checker) egressHost(path, h string) {
	ns, host, ok := strings.Cut(strings.TrimPrefix(h, "!"), "/")
	if !ok || ns == "" || host == "" {
		c.addValue(finding.InvalidHost, path, `for example "./*", "*/*" or "shop/cart.shop.svc.cluster.local"`, `%q is not "namespace/host"`, h)
		return
	}
	if ns != "*" && ns != "." && ns != "~" && !dnsLabel.MatchString(ns) {
		c.addValue(finding.InvalidHost, path, "", "%q is not a namespace", ns)
	}
	c.host(path, host)
}

func (c *checker) defaultEndpoint(path, e string) {
	if e == "" || strings.HasPrefix(e, "unix:///") || strings.HasPrefix(e, "unix://@") {
		return
	}
	i := strings.LastIndexByte(e, ':')
	if i < 0 {
		c.addValue(finding.InvalidAddress, path, "", "%q has no port", e)
		return
	}
	if n, err := strconv.Atoi(e[i+1:]); err != nil || n < 1 || n > 65535 {
		c.addValue(finding.InvalidAddress, path, "", "%q has no valid port", e)
	}
	switch strings.Trim(e[:i], "[]") {
	case "127.0.0.1", "0.0.0.0", "::1", "::":
	default:
		c.addValue(finding.InvalidAddress, path, "use 127.0.0.1 or 0.0.0.0", "%q is not an address of the workload itself", e[:i])
	}
}
