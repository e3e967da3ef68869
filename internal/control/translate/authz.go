package translate

import (
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbachttppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbactcppb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	"lateen.dev/lateen/internal/control/translate/authz"
)

// authorization returns the rules of the node's workload, filter by filter.
func (b *builder) authorization(tcp bool) []authz.Rules {
	return authz.Compile(b.m.AuthorizationFor(b.n.Namespace, b.n.Labels), b.trustDomains(), tcp, b.noteOrigin)
}

func (b *builder) authorizationHTTP() []*hcmpb.HttpFilter {
	var out []*hcmpb.HttpFilter
	for _, r := range b.authorization(false) {
		out = append(out, httpFilter("envoy.filters.http.rbac", &rbachttppb.RBAC{
			Rules: r.Enforced, ShadowRules: r.Shadow, ShadowRulesStatPrefix: r.ShadowPrefix(),
		}))
	}
	return out
}

func (b *builder) authorizationTCP() []*listenerpb.Filter {
	var out []*listenerpb.Filter
	for _, r := range b.authorization(true) {
		out = append(out, networkFilter("envoy.filters.network.rbac", &rbactcppb.RBAC{
			Rules: r.Enforced, ShadowRules: r.Shadow, ShadowRulesStatPrefix: r.ShadowPrefix(), StatPrefix: "tcp.",
		}))
	}
	return out
}
