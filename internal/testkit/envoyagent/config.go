//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/secret"
	"lateen.dev/lateen/internal/spiffe"
)

// The clusters of the bootstrap. sds-grpc is the name that Istio's
// configuration uses for the agent.
const (
	secretCluster    = "sds-grpc"
	controlCluster   = "xds-grpc"
	telemetryCluster = "otlp-grpc"
)

// secretSocket is where the agent serves secrets, in the working directory.
const secretSocket = "sds.sock"

type object = map[string]any

// envoyBootstrap writes Envoy's bootstrap file.
func (a *agent) envoyBootstrap() ([]byte, error) {
	control, err := a.controlCluster()
	if err != nil {
		return nil, err
	}
	clusters := []any{control, grpcCluster(secretCluster, object{"pipe": object{"path": secretSocket}})}
	if a.boot.Telemetry != "" {
		hub, err := address(a.boot.Telemetry)
		if err != nil {
			return nil, err
		}
		c := grpcCluster(telemetryCluster, hub)
		a.mark(c)
		clusters = append(clusters, c)
	}
	data, err := json.MarshalIndent(object{
		"node":  object{"id": a.boot.Node.ID, "cluster": a.boot.Node.Cluster, "metadata": a.metadata()},
		"admin": object{"address": socketAddress("127.0.0.1", bootstrap.AdminPort)},
		"dynamic_resources": object{
			"ads_config": object{
				"api_type": "DELTA_GRPC", "transport_api_version": "V3",
				"grpc_services": []any{object{"envoy_grpc": object{"cluster_name": controlCluster}}},
			},
			"cds_config": adsSource(), "lds_config": adsSource(),
		},
		"static_resources": object{"clusters": clusters},
		"layered_runtime": object{"layers": []any{object{"name": "static", "static_layer": object{
			// Istio's bootstrap has the same: regular expressions of the mesh
			// may be larger than what Envoy takes by itself.
			"re2.max_program_size.error_level": 32768,
		}}}},
	}, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encode Envoy's bootstrap: %w", err)
	}
	return data, nil
}

// metadata is the node's, without what only lateen-proxy and Istio's proxy say
// of themselves.
func (a *agent) metadata() object {
	out := object{}
	for k, v := range a.boot.Node.Metadata {
		if k != "LATEEN_CAPS" && k != "ISTIO_VERSION" {
			out[k] = v
		}
	}
	if a.boot.Telemetry != "" {
		out["LATEEN_OTLP_CLUSTER"] = telemetryCluster
	}
	return out
}

func adsSource() object {
	// Envoy must not come up without configuration only because that is late.
	return object{"ads": object{}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
}

// grpcCluster is a static cluster of one address that speaks HTTP/2.
func grpcCluster(name string, at object) object {
	const options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	return object{
		"name": name, "type": "STATIC", "connect_timeout": "5s",
		"typed_extension_protocol_options": object{options: object{
			"@type":                "type.googleapis.com/" + options,
			"explicit_http_config": object{"http2_protocol_options": object{}},
		}},
		"load_assignment": object{"cluster_name": name, "endpoints": []any{object{"lb_endpoints": []any{
			object{"endpoint": object{"address": at}},
		}}}},
	}
}

// controlCluster leads to the control plane over mutual TLS.
func (a *agent) controlCluster() (object, error) {
	at, err := address(a.boot.Control.Address)
	if err != nil {
		return nil, err
	}
	c := grpcCluster(controlCluster, at)
	san := object{"san_type": "URI", "matcher": object{"exact": spiffe.ControlPlane(a.boot.Identity.TrustDomain).String()}}
	if name := a.boot.Control.ServerName; name != "" {
		san = object{"san_type": "DNS", "matcher": object{"exact": name}}
	}
	c["transport_socket"] = object{"name": "envoy.transport_sockets.tls", "typed_config": object{
		"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
		"common_tls_context": object{
			"alpn_protocols":                     []string{"h2"},
			"tls_params":                         object{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
			"tls_certificate_sds_secret_configs": []any{agentSecret(secret.Default)},
			"combined_validation_context": object{
				"default_validation_context":           object{"match_typed_subject_alt_names": []any{san}},
				"validation_context_sds_secret_config": agentSecret(secret.RootCA),
			},
		},
	}}
	a.mark(c)
	return c, nil
}

func agentSecret(name string) object {
	return object{"name": name, "sds_config": object{
		"resource_api_version": "V3", "initial_fetch_timeout": "0s",
		"api_config_source": object{
			"api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
			"grpc_services": []any{object{"envoy_grpc": object{"cluster_name": secretCluster}}},
		},
	}}
}

// mark keeps connections of a cluster out of capture.
func (a *agent) mark(cluster object) {
	if a.boot.Capture == bootstrap.CaptureMark {
		cluster["upstream_bind_config"] = object{"socket_options": []any{object{
			"description": "SO_MARK", "level": 1, "name": 36, "int_value": bootstrap.OutboundMark, "state": "STATE_PREBIND",
		}}}
	}
}

func address(hostPort string) (object, error) {
	a, err := netip.ParseAddrPort(hostPort)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", hostPort, err)
	}
	return socketAddress(a.Addr().String(), int(a.Port())), nil
}

func socketAddress(host string, port int) object {
	return object{"socket_address": object{"address": host, "port_value": port}}
}
