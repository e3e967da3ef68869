package admin

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"sort"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource types in the order and spelling of Envoy's ConfigDump.
const (
	typePrefix   = "type.googleapis.com/"
	clusterType  = typePrefix + "envoy.config.cluster.v3.Cluster"
	endpointType = typePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType = typePrefix + "envoy.config.listener.v3.Listener"
	routeType    = typePrefix + "envoy.config.route.v3.RouteConfiguration"
	secretType   = typePrefix + "envoy.extensions.transport_sockets.tls.v3.Secret"
)

// section is one kind of resource within a ConfigDump.
type section struct {
	dump, list, field, url string
	// state is the field that wraps a listener's entry.
	state string
}

func sections() []section {
	return []section{
		{dump: "ClustersConfigDump", list: "dynamic_active_clusters", field: "cluster", url: clusterType},
		{dump: "EndpointsConfigDump", list: "dynamic_endpoint_configs", field: "endpoint_config", url: endpointType},
		{dump: "ListenersConfigDump", list: "dynamic_listeners", field: "listener", url: listenerType, state: "active_state"},
		{dump: "RoutesConfigDump", list: "dynamic_route_configs", field: "route_config", url: routeType},
	}
}

// object keeps the order of its fields, as a protobuf JSON encoder would.
type object []struct {
	key   string
	value any
}

func (o *object) add(key string, value any) {
	*o = append(*o, struct {
		key   string
		value any
	}{key, value})
}

// MarshalJSON writes the fields in order.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		k, _ := json.Marshal(f.key) // a string always marshals
		b.Write(append(k, ':'))
		v, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (s *server) configDump(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("mask") != "" {
		http.Error(w, "mask is not supported; use resource= and name_regex=", http.StatusBadRequest)
		return
	}
	names, err := regexp.Compile("^(?:" + q.Get("name_regex") + ")$")
	if err != nil {
		http.Error(w, "name_regex: "+err.Error(), http.StatusBadRequest)
		return
	}
	if q.Get("name_regex") == "" {
		names = nil
	}
	only := q.Get("resource")
	var configs []any
	if only == "" && names == nil && s.o.Bootstrap != nil {
		var o object
		o.add("@type", typePrefix+"envoy.admin.v3.BootstrapConfigDump")
		o.add("bootstrap", s.o.Bootstrap)
		configs = append(configs, o)
	}
	var all []Resource
	if s.o.Resources != nil {
		all = s.o.Resources()
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	for _, sec := range sections() {
		if sec.url == endpointType && !q.Has("include_eds") && only != sec.list {
			continue
		}
		if only != "" && only != sec.list {
			continue
		}
		entries, err := sec.entries(all, names)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if only != "" {
			configs = append(configs, typed(entries, sec)...)
			continue
		}
		var o object
		o.add("@type", typePrefix+"envoy.admin.v3."+sec.dump)
		if len(entries) > 0 {
			o.add(sec.list, entries)
		}
		configs = append(configs, o)
	}
	if only == "" && names == nil || only == "dynamic_active_secrets" {
		configs = append(configs, s.secretsDump())
	}
	if only != "" && len(configs) == 0 {
		if !known(only) {
			http.Error(w, fmt.Sprintf("%s not found in config dump", only), http.StatusNotFound)
			return
		}
		configs = []any{}
	}
	writeJSON(w, map[string]any{"configs": configs})
}

func known(list string) bool {
	for _, sec := range sections() {
		if sec.list == list {
			return true
		}
	}
	return false
}

// typed makes every entry a message of its own, as ?resource= wants it.
func typed(entries []object, sec section) []any {
	var out []any
	for _, e := range entries {
		name := map[string]string{
			"dynamic_active_clusters": "DynamicCluster", "dynamic_endpoint_configs": "DynamicEndpointConfig",
			"dynamic_listeners": "DynamicListener", "dynamic_route_configs": "DynamicRouteConfig",
		}[sec.list]
		var o object
		o.add("@type", typePrefix+"envoy.admin.v3."+sec.dump+"."+name)
		out = append(out, append(o, e...))
	}
	return out
}

func (sec section) entries(all []Resource, names *regexp.Regexp) ([]object, error) {
	var out []object
	for i := range all {
		r := &all[i]
		if r.TypeURL != sec.url || names != nil && !names.MatchString(r.Name) {
			continue
		}
		var body object
		if r.Message != nil {
			raw, err := marshalAny(r)
			if err != nil {
				return nil, err
			}
			if r.Version != "" {
				body.add("version_info", r.Version)
			}
			body.add(sec.field, raw)
			body.add("last_updated", r.Updated.UTC().Format(time.RFC3339Nano))
		}
		entry := body
		if sec.state != "" {
			entry = object{}
			entry.add("name", r.Name)
			if r.Message != nil {
				entry.add(sec.state, body)
			}
		}
		if r.Error != "" {
			entry.add("error_state", map[string]any{"details": r.Error})
		}
		out = append(out, entry)
	}
	return out, nil
}

// marshalAny writes a resource as Envoy does: an Any with "@type", proto field
// names, defaults omitted.
func marshalAny(r *Resource) (json.RawMessage, error) {
	a, err := anypb.New(r.Message)
	if err != nil {
		return nil, fmt.Errorf("dump %s: %w", r.Name, err)
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("dump %s: %w", r.Name, err)
	}
	return b, nil
}

// redacted is what Envoy prints in place of a private key.
const redacted = "[redacted]"

func (s *server) secretsDump() any {
	var list []object
	for _, c := range s.certificates() {
		var secret object
		secret.add("@type", secretType)
		secret.add("name", c.Name)
		switch {
		case len(c.Chain) > 0:
			secret.add("tls_certificate", map[string]any{
				"certificate_chain": map[string]any{"inline_bytes": pemBytes(c)},
				"private_key":       map[string]any{"inline_bytes": base64.StdEncoding.EncodeToString([]byte(redacted))},
			})
		default:
			secret.add("validation_context", map[string]any{"trusted_ca": map[string]any{"inline_bytes": pemBytes(c)}})
		}
		var e object
		e.add("name", c.Name)
		e.add("secret", secret)
		list = append(list, e)
	}
	var o object
	o.add("@type", typePrefix+"envoy.admin.v3.SecretsConfigDump")
	if len(list) > 0 {
		o.add("dynamic_active_secrets", list)
	}
	return o
}

func pemBytes(c Certificate) string {
	var b bytes.Buffer
	for _, x := range slices.Concat(c.Chain, c.Roots) {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: x.Raw}) //nolint:errcheck // a buffer takes everything
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

func (s *server) certificates() []Certificate {
	if s.o.Certificates == nil {
		return nil
	}
	return s.o.Certificates()
}

func (s *server) certs(w http.ResponseWriter, _ *http.Request) {
	type san struct {
		URI string `json:"uri,omitempty"`
		DNS string `json:"dns,omitempty"`
	}
	type cert struct {
		Path   string    `json:"path"`
		Serial string    `json:"serial_number"`
		SANs   []san     `json:"subject_alt_names,omitempty"`
		Days   string    `json:"days_until_expiration"`
		From   time.Time `json:"valid_from"`
		Until  time.Time `json:"expiration_time"`
	}
	type pair struct {
		CA    []cert `json:"ca_cert"`
		Chain []cert `json:"cert_chain"`
	}
	out := []pair{}
	for _, c := range s.certificates() {
		p := pair{CA: []cert{}, Chain: []cert{}}
		for i, x := range slices.Concat(c.Chain, c.Roots) {
			e := cert{
				Path: c.Name, Serial: fmt.Sprintf("%x", x.SerialNumber), From: x.NotBefore, Until: x.NotAfter,
				Days: fmt.Sprint(max(0, int(time.Until(x.NotAfter).Hours()/24))),
			}
			for _, u := range x.URIs {
				e.SANs = append(e.SANs, san{URI: u.String()})
			}
			for _, d := range x.DNSNames {
				e.SANs = append(e.SANs, san{DNS: d})
			}
			if i < len(c.Chain) {
				p.Chain = append(p.Chain, e)
			} else {
				p.CA = append(p.CA, e)
			}
		}
		out = append(out, p)
	}
	writeJSON(w, map[string]any{"certificates": out})
}
