package translate

import (
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	setstatepb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setfilterpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/mesh"
)

// setFilterState is the standard extension that stands in for istio.alpn.
const setFilterState = "envoy.filters.http.set_filter_state"

// detectedALPN tells the peer of a port without declared protocol that HTTP was
// detected: without it, the peer would treat the connection as opaque. It does
// for a stock Envoy what istio.alpn does; declared HTTP ports need neither, as
// their peers know the protocol. The HTTP version is the request's own, which
// such clusters go on with.
func (b *builder) detectedALPN() []*hcmpb.HttpFilter {
	if b.n.istioFilters() || !b.n.has(setFilterState) || !b.n.has("envoy.built_in_formatters.cel") {
		return nil
	}
	value := `%CEL(request.protocol == "HTTP/2" ? "istio-h2,istio,h2" : "istio-http/1.1,istio,http/1.1")%`
	return []*hcmpb.HttpFilter{httpFilter(setFilterState, &setfilterpb.Config{
		OnRequestHeaders: []*setstatepb.FilterStateValue{{
			Key: &setstatepb.FilterStateValue_ObjectKey{ObjectKey: "envoy.network.application_protocols"},
			Value: &setstatepb.FilterStateValue_FormatString{FormatString: &corepb.SubstitutionFormatString{
				Format: &corepb.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corepb.DataSource{
					Specifier: &corepb.DataSource_InlineString{InlineString: value},
				}},
			}},
			SharedWithUpstream: setstatepb.FilterStateValue_ONCE,
		}},
	})}
}

// meetsMeshTLS reports whether connections to a port may use mutual TLS of the
// mesh. Others must not be offered its protocols.
func (b *builder) meetsMeshTLS(s *mesh.Service, p mesh.Port) bool {
	tls := mergePolicy(b.rule(s), nil, p.Number).GetTls()
	return !s.MeshExternal && (tls == nil || tls.GetMode() == networkingpb.ClientTLSSettings_ISTIO_MUTUAL)
}
