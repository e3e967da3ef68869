package validate

import (
	"math/big"

	networkingv1 "istio.io/api/networking/v1"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/finding"
)

// destinationRule holds Istio's rules for a DestinationRule beyond its CRD.
func (c *checker) destinationRule(dr *networkingv1.DestinationRule) {
	if dr.Host != "" || c.o.Has("spec.host") {
		c.host("spec.host", dr.Host)
	}
	c.trafficPolicy("spec.trafficPolicy", dr.TrafficPolicy)
	c.exportTo("spec.exportTo", dr.ExportTo)
	first := map[string]int{}
	for i, s := range dr.Subsets {
		path := at("spec.subsets", "[%d]", i)
		if s.Name != "" && !dnsLabel.MatchString(s.Name) {
			c.addValue(finding.InvalidReference, path+".name", "", "%q is not a valid subset name", s.Name)
		}
		if j, twice := first[s.Name]; twice && s.Name != "" {
			c.addValue(finding.DuplicateSubset, path+".name", "", "subset %q is defined twice; first in spec.subsets[%d]", s.Name, j)
		} else {
			first[s.Name] = i
		}
		c.labels(path+".labels", s.Labels)
		c.trafficPolicy(path+".trafficPolicy", s.TrafficPolicy)
	}
}

func (c *checker) trafficPolicy(path string, p *networkingv1.TrafficPolicy) {
	if p == nil {
		return
	}
	c.loadBalancer(path+".loadBalancer", p.LoadBalancer)
	c.connectionPool(path+".connectionPool", p.ConnectionPool)
	c.outlier(path+".outlierDetection", p.OutlierDetection)
	c.clientTLS(path+".tls", p.Tls)
	if t := p.Tunnel; t != nil {
		if t.Protocol != "" && t.Protocol != "CONNECT" && t.Protocol != "POST" {
			c.addValue(finding.InvalidPolicyValue, path+".tunnel.protocol", "", "protocol %q is neither CONNECT nor POST", t.Protocol)
		}
	}
	seen := map[uint32]bool{}
	for i, s := range p.PortLevelSettings {
		at := at(path, ".portLevelSettings[%d]", i)
		n := s.Port.GetNumber()
		if n == 0 || n > 65535 {
			c.add(finding.InvalidPolicyValue, at, "", "%s needs port.number from 1 to 65535", at)
		} else if seen[n] {
			c.add(finding.InvalidPolicyValue, at, "", "port %d has settings twice", n)
		}
		seen[n] = true
		c.loadBalancer(at+".loadBalancer", s.LoadBalancer)
		c.connectionPool(at+".connectionPool", s.ConnectionPool)
		c.outlier(at+".outlierDetection", s.OutlierDetection)
		c.clientTLS(at+".tls", s.Tls)
	}
}

func (c *checker) loadBalancer(path string, lb *networkingv1.LoadBalancerSettings) {
	if lb == nil {
		return
	}
	if h := lb.GetConsistentHash(); h != nil {
		at := path + ".consistentHash"
		if h.HashKey == nil {
			c.add(finding.InvalidPolicyValue, at, "", "%s names nothing to hash: header, cookie, query parameter or source address", at)
		}
		if m := h.GetMaglev(); m != nil && m.TableSize != 0 && (m.TableSize > 5000011 || !new(big.Int).SetUint64(m.TableSize).ProbablyPrime(0)) {
			c.addValue(finding.InvalidPolicyValue, at+".maglev.tableSize", "", "tableSize %d is not a prime up to 5000011", m.TableSize)
		}
		if ck := h.GetHttpCookie(); ck != nil && ck.Name == "" {
			c.add(finding.InvalidPolicyValue, at+".httpCookie", "", "the cookie has no name")
		}
	}
	c.locality(path+".localityLbSetting", lb.LocalityLbSetting)
	if lb.WarmupDurationSecs != nil && lb.Warmup != nil {
		c.add(finding.InvalidPolicyValue, path+".warmupDurationSecs", "", "warmup and warmupDurationSecs exclude each other")
	}
}

func (c *checker) locality(path string, s *networkingv1.LocalityLoadBalancerSetting) {
	if s == nil {
		return
	}
	if len(s.Distribute) > 0 && (len(s.Failover) > 0 || len(s.FailoverPriority) > 0) {
		c.add(finding.InvalidPolicyValue, path, "", "distribute cannot stand beside failover or failoverPriority")
	}
	for i, d := range s.Distribute {
		var sum uint64
		for _, w := range d.To {
			sum += uint64(w)
		}
		if sum != 100 {
			c.add(finding.InvalidPolicyValue, at(path, ".distribute[%d].to", i), "", "the shares sum to %d; they must sum to 100", sum)
		}
	}
	for i, f := range s.Failover {
		if f.From == f.To {
			c.add(finding.InvalidPolicyValue, at(path, ".failover[%d]", i), "", "from and to are the same region %q", f.From)
		}
	}
}

func (c *checker) connectionPool(path string, p *networkingv1.ConnectionPoolSettings) {
	if p == nil {
		return
	}
	if p.Http == nil && p.Tcp == nil {
		c.add(finding.InvalidPolicyValue, path, "", "%s is empty: it needs tcp or http", path)
		return
	}
	limit := func(name string, n int32) {
		if n < 0 {
			c.addValue(finding.OutOfRange, path+"."+name, "", "%s is %d; it must not be negative", name, n)
		}
	}
	if t := p.Tcp; t != nil {
		limit("tcp.maxConnections", t.MaxConnections)
	}
	if h := p.Http; h != nil {
		limit("http.http1MaxPendingRequests", h.Http1MaxPendingRequests)
		limit("http.http2MaxRequests", h.Http2MaxRequests)
		limit("http.maxRequestsPerConnection", h.MaxRequestsPerConnection)
		limit("http.maxRetries", h.MaxRetries)
		limit("http.maxConcurrentStreams", h.MaxConcurrentStreams)
		if n := h.MaxRequestsPerConnection; n > 0 && n < 10 {
			c.addValue(finding.ShortConnections, path+".http.maxRequestsPerConnection", "leave it out to keep connections alive",
				"each connection is closed after %d requests, so that most requests pay for a new one", n)
		}
	}
}

func (c *checker) outlier(path string, d *networkingv1.OutlierDetection) {
	if d == nil {
		return
	}
	c.percent(path+".maxEjectionPercent", float64(d.MaxEjectionPercent))
	c.percent(path+".minHealthPercent", float64(d.MinHealthPercent))
	if d.ConsecutiveLocalOriginFailures.GetValue() > 0 && !d.SplitExternalLocalOriginErrors {
		c.add(finding.InvalidPolicyValue, path+".consecutiveLocalOriginFailures", "set splitExternalLocalOriginErrors: true",
			"consecutiveLocalOriginFailures only counts with splitExternalLocalOriginErrors")
	}
}

func (c *checker) clientTLS(path string, t *networkingv1.ClientTLSSettings) {
	if t == nil {
		return
	}
	files := t.ClientCertificate != "" || t.PrivateKey != "" || t.CaCertificates != ""
	switch t.Mode {
	case networkingv1alpha3.ClientTLSSettings_MUTUAL:
		if t.CredentialName == "" && (t.ClientCertificate == "" || t.PrivateKey == "") {
			c.add(finding.InvalidTLS, path, "", "mode MUTUAL needs credentialName, or clientCertificate and privateKey")
		}
		if t.CredentialName != "" && files {
			c.add(finding.InvalidTLS, path, "", "credentialName and certificate files exclude each other")
		}
	case networkingv1alpha3.ClientTLSSettings_ISTIO_MUTUAL:
		if files || t.CredentialName != "" {
			c.add(finding.InvalidTLS, path, "", "mode ISTIO_MUTUAL uses the mesh's own certificates; remove the others")
		}
	case networkingv1alpha3.ClientTLSSettings_SIMPLE:
		if t.CaCertificates == "" && t.CredentialName == "" && !t.InsecureSkipVerify.GetValue() {
			c.add(finding.UnverifiedTLS, path, "set caCertificates or credentialName", "the server's certificate is not verified against any authority named here")
		}
	}
}
