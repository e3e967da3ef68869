package validate

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	securityv1 "istio.io/api/security/v1"
	securityv1beta1 "istio.io/api/security/v1beta1"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// authorizationPolicy holds Istio's rules for an AuthorizationPolicy beyond its
// CRD.
func (c *checker) authorizationPolicy(p *securityv1.AuthorizationPolicy) {
	custom := p.Action == securityv1beta1.AuthorizationPolicy_CUSTOM
	switch {
	case custom && p.GetProvider().GetName() == "":
		c.add(finding.InvalidPolicy, "spec.action", "name one of the MeshConfig's extensionProviders", "action CUSTOM needs spec.provider.name")
	case !custom && p.GetProvider() != nil:
		c.add(finding.InvalidPolicy, "spec.provider", "", "spec.provider only stands with action CUSTOM")
	}
	switch p.Action {
	case securityv1beta1.AuthorizationPolicy_CUSTOM:
		c.addValue(finding.FieldNotApplied, "spec.action", "", "this version of Lateen asks no external authorizer: what the policy matches is denied")
	case securityv1beta1.AuthorizationPolicy_AUDIT:
		c.addValue(finding.FieldNotApplied, "spec.action", "", "this version of Lateen writes no audit records: the policy has no effect")
	}
	if len(p.Rules) == 0 {
		switch p.Action {
		case securityv1beta1.AuthorizationPolicy_ALLOW:
			c.add(finding.DeniesAll, "spec", "", "an ALLOW policy without rules denies every request to what it selects")
		default:
			c.add(finding.IneffectivePolicy, "spec", "add rules; one empty rule {} matches every request", "a %s policy without rules never matches", p.Action)
		}
	}
	for i, r := range p.Rules {
		path := at("spec.rules", "[%d]", i)
		if r.From != nil && len(r.From) == 0 || c.o.Has(path+".from") && len(r.From) == 0 {
			c.add(finding.InvalidPolicy, path+".from", "remove it to match any caller", "%s.from is empty", path)
		}
		if c.o.Has(path+".to") && len(r.To) == 0 {
			c.add(finding.InvalidPolicy, path+".to", "remove it to match any operation", "%s.to is empty", path)
		}
		for j, f := range r.From {
			c.source(at(path, ".from[%d].source", j), f.Source)
		}
		for j, t := range r.To {
			c.operation(at(path, ".to[%d].operation", j), t.Operation)
		}
		for j, w := range r.When {
			c.condition(at(path, ".when[%d]", j), w)
		}
	}
}

// values is one list of match values in a policy.
type values struct {
	name string
	list []string
}

// matchLists checks the lists of a source or operation for what is wrong with
// any of them: none at all, empty entries, and '*' where it has no meaning.
func (c *checker) matchLists(path string, lists []values) {
	n := 0
	for _, l := range lists {
		n += len(l.list)
		for i, v := range l.list {
			at := at(path, ".%s[%d]", l.name, i)
			if v == "" {
				c.addValue(finding.InvalidPolicy, at, "", "an entry of %s is empty", l.name)
			}
			if inner := strings.Trim(v, "*"); strings.Contains(inner, "*") && !strings.Contains(v, "{*") ||
				len(v) > 1 && strings.HasPrefix(v, "*") && strings.HasSuffix(v, "*") {
				c.addValue(finding.WildcardInside, at, `"*" alone, "prefix*" and "*suffix" are the patterns there are`,
					"%q: a '*' in the middle, or at both ends, is taken literally", v)
			}
		}
	}
	if n == 0 {
		c.add(finding.InvalidPolicy, path, "remove it, or list what it matches", "%s is empty", path)
	}
}

func (c *checker) source(path string, s *securityv1.Source) {
	if s == nil {
		c.add(finding.InvalidPolicy, path, "", "%s is missing", path)
		return
	}
	c.matchLists(path, []values{
		{"principals", s.Principals},
		{"notPrincipals", s.NotPrincipals},
		{"requestPrincipals", s.RequestPrincipals},
		{"notRequestPrincipals", s.NotRequestPrincipals},
		{"namespaces", s.Namespaces},
		{"notNamespaces", s.NotNamespaces},
		{"serviceAccounts", s.ServiceAccounts},
		{"notServiceAccounts", s.NotServiceAccounts},
		{"ipBlocks", s.IpBlocks},
		{"notIpBlocks", s.NotIpBlocks},
		{"remoteIpBlocks", s.RemoteIpBlocks},
		{"notRemoteIpBlocks", s.NotRemoteIpBlocks},
		{"trustDomains", s.TrustDomains},
		{"notTrustDomains", s.NotTrustDomains},
	})
	for _, l := range []values{{"ipBlocks", s.IpBlocks}, {"notIpBlocks", s.NotIpBlocks}, {"remoteIpBlocks", s.RemoteIpBlocks}, {"notRemoteIpBlocks", s.NotRemoteIpBlocks}} {
		for i, v := range l.list {
			if v != "" && !validAddress(v) {
				c.addValue(finding.InvalidPolicy, at(path, ".%s[%d]", l.name, i), "", "%q is neither an address nor a CIDR block", v)
			}
		}
	}
	for _, l := range []values{{"principals", s.Principals}, {"notPrincipals", s.NotPrincipals}} {
		for i, v := range l.list {
			if rest, ok := strings.CutPrefix(v, "spiffe://"); ok {
				c.addValue(finding.PrincipalScheme, at(path, ".%s[%d]", l.name, i), "write "+strconv.Quote(rest), "principals are written without spiffe://, so this never matches")
			}
		}
	}
}

func (c *checker) operation(path string, o *securityv1.Operation) {
	if o == nil {
		c.add(finding.InvalidPolicy, path, "", "%s is missing", path)
		return
	}
	c.matchLists(path, []values{
		{"hosts", o.Hosts},
		{"notHosts", o.NotHosts},
		{"ports", o.Ports},
		{"notPorts", o.NotPorts},
		{"methods", o.Methods},
		{"notMethods", o.NotMethods},
		{"paths", o.Paths},
		{"notPaths", o.NotPaths},
	})
	for _, l := range []values{{"ports", o.Ports}, {"notPorts", o.NotPorts}} {
		for i, v := range l.list {
			if n, err := strconv.ParseUint(v, 10, 16); v != "" && (err != nil || n == 0) {
				c.addValue(finding.InvalidPolicy, at(path, ".%s[%d]", l.name, i), "", "%q is not a port", v)
			}
		}
	}
	for _, l := range []values{{"methods", o.Methods}, {"notMethods", o.NotMethods}} {
		for i, v := range l.list {
			if v != strings.ToUpper(v) && !strings.Contains(v, "/") {
				c.addValue(finding.MethodCase, at(path, ".%s[%d]", l.name, i), "write "+strconv.Quote(strings.ToUpper(v)), "methods are compared as they are, so %q matches no usual request", v)
			}
		}
	}
	for _, l := range []values{{"paths", o.Paths}, {"notPaths", o.NotPaths}} {
		for i, v := range l.list {
			c.pathPattern(at(path, ".%s[%d]", l.name, i), v)
		}
	}
}

// pathPattern checks a path, which may have the templates {*} and {**} as whole
// segments.
func (c *checker) pathPattern(path, v string) {
	if !strings.Contains(v, "{*") {
		if v != "" && v[0] != '/' && v[0] != '*' {
			c.addValue(finding.PathNeverMatches, path, "begin it with /", "paths begin with a slash, so %q never matches", v)
		}
		return
	}
	deep := false
	for _, segment := range strings.Split(strings.TrimPrefix(v, "/"), "/") {
		switch {
		case deep && (segment == "{**}"):
			c.addValue(finding.InvalidPolicy, path, "", "%q has {**} twice", v)
			return
		case segment == "{**}":
			deep = true
		case segment == "{*}":
			if deep {
				c.addValue(finding.InvalidPolicy, path, "", "%q has {*} after {**}", v)
				return
			}
		case strings.ContainsAny(segment, "{}*"):
			c.addValue(finding.InvalidPolicy, path, "", "%q: {*} and {**} must be whole segments, without other '*' beside them", v)
			return
		}
	}
}

var bracketKey = regexp.MustCompile(`^(request\.headers|request\.auth\.claims|experimental\.envoy\.filters\.[^\[]+)(\[[^\]]+\])+$`)

func conditionKeys() []string {
	return []string{
		"source.ip", "remote.ip", "source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal",
		"request.auth.principal", "request.auth.audiences", "request.auth.presenter",
		"destination.ip", "destination.port", "connection.sni",
	}
}

func (c *checker) condition(path string, w *securityv1.Condition) {
	if !slices.Contains(conditionKeys(), w.Key) && !bracketKey.MatchString(w.Key) && w.Key != "" {
		hint := ""
		if near := resource.Nearest(w.Key, conditionKeys()); near != "" {
			hint = "did you mean " + strconv.Quote(near) + "?"
		} else if w.Key == "request.headers" || w.Key == "request.auth.claims" {
			hint = "name the header or claim: " + w.Key + "[name]"
		}
		c.addValue(finding.InvalidPolicy, path+".key", hint, "%q is not an attribute", w.Key)
	}
	if len(w.Values)+len(w.NotValues) == 0 {
		c.add(finding.InvalidPolicy, path, "", "%s has neither values nor notValues", path)
	}
	for _, l := range []values{{"values", w.Values}, {"notValues", w.NotValues}} {
		for i, v := range l.list {
			at := at(path, ".%s[%d]", l.name, i)
			switch w.Key {
			case "source.ip", "remote.ip", "destination.ip":
				if !validAddress(v) {
					c.addValue(finding.InvalidPolicy, at, "", "%q is neither an address nor a CIDR block", v)
				}
			case "destination.port":
				if _, err := strconv.ParseUint(v, 10, 16); err != nil {
					c.addValue(finding.InvalidPolicy, at, "", "%q is not a port", v)
				}
			default:
				if v == "" {
					c.addValue(finding.InvalidPolicy, at, "", "an entry of %s is empty", l.name)
				}
			}
		}
	}
}

// peerAuthentication adds to the CRD that a policy should say something.
func (c *checker) peerAuthentication(p *securityv1.PeerAuthentication) {
	if p.Mtls == nil && len(p.PortLevelMtls) == 0 {
		c.add(finding.IneffectivePolicy, "spec", "set spec.mtls.mode", "the policy sets no mode, so what lies above it stays in force")
	}
}

// requestAuthentication holds Istio's rules for a RequestAuthentication beyond
// its CRD.
func (c *checker) requestAuthentication(p *securityv1.RequestAuthentication) {
	for i, r := range p.JwtRules {
		path := at("spec.jwtRules", "[%d]", i)
		if r.Jwks != "" {
			var set struct {
				Keys []map[string]any `json:"keys"`
			}
			if err := json.Unmarshal([]byte(r.Jwks), &set); err != nil || len(set.Keys) == 0 {
				c.addValue(finding.InvalidPolicy, path+".jwks", "", "jwks is not a JSON Web Key Set")
			}
		}
		for j, a := range r.Audiences {
			if a == "" {
				c.addValue(finding.InvalidPolicy, at(path, ".audiences[%d]", j), "", "an audience is empty")
			}
		}
		for j, h := range r.FromHeaders {
			if !headerToken.MatchString(h.Name) {
				c.add(finding.InvalidHeader, at(path, ".fromHeaders[%d]", j), "", "%q is not a header name", h.Name)
			}
		}
	}
}

// isIP reports whether s is a plain address.
func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}
