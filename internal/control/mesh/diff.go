package mesh

import (
	"maps"
	"reflect"
	"slices"

	"google.golang.org/protobuf/proto"

	"lateen.dev/lateen/internal/resource"
)

// proxyKinds are the kinds, besides those of the registry, whose change a proxy
// can notice.
var proxyKinds = map[resource.Kind]bool{
	"VirtualService": true, "DestinationRule": true, "Gateway": true, "Sidecar": true,
	"PeerAuthentication": true, "AuthorizationPolicy": true, "RequestAuthentication": true,
	"Telemetry": true, "Secret": true, "Namespace": true,
}

// originKinds are the kinds that origin ids may name.
var originKinds = map[resource.Kind]bool{
	"VirtualService": true, "DestinationRule": true, "Gateway": true, "Sidecar": true,
	"PeerAuthentication": true, "AuthorizationPolicy": true, "RequestAuthentication": true,
	"Telemetry": true, "Service": true, "ServiceEntry": true, "ConfigMap": true,
}

// diff says what a proxy could notice of the step from prev to m.
func (m *Mesh) diff(prev *Mesh) Diff {
	if !m.sameFrame(prev) {
		return Diff{Full: true}
	}
	d := Diff{
		Services: map[string]bool{}, Endpoints: map[string]bool{}, Workloads: map[resource.Key]bool{},
		Objects: map[resource.Key]bool{}, Moved: map[resource.Key]bool{},
	}
	m.diffObjects(prev, d)
	m.diffServices(prev, d)
	for id, list := range m.endpoints {
		if !slices.EqualFunc(list, prev.endpoints[id], equalEndpoint) {
			d.Endpoints[hostOf(id)] = true
		}
	}
	for id := range prev.endpoints {
		if _, ok := m.endpoints[id]; !ok {
			d.Endpoints[hostOf(id)] = true
		}
	}
	for k, w := range m.workloadKey {
		if old := prev.workloadKey[k]; old == nil || old != w && !equalWorkload(old, w) {
			d.Workloads[k] = true
		}
	}
	for k := range prev.workloadKey {
		if m.workloadKey[k] == nil {
			d.Workloads[k] = true
		}
	}
	return d
}

func hostOf(id string) string {
	for i := range len(id) {
		if id[i] == '/' {
			return id[i+1:]
		}
	}
	return id
}

func (m *Mesh) diffObjects(prev *Mesh, d Diff) {
	for k, o := range m.objects {
		old := prev.objects[k]
		if old == o {
			continue
		}
		if old != nil && equalObject(old, o) {
			if originKinds[k.Kind] {
				d.Moved[k] = true
			}
			continue
		}
		if proxyKinds[k.Kind] {
			d.Objects[k] = true
		}
	}
	for k := range prev.objects {
		if m.objects[k] == nil && proxyKinds[k.Kind] {
			d.Objects[k] = true
		}
	}
}

// equalObject reports whether two versions of an object mean the same: all that
// decoding read, places apart.
func equalObject(a, b *resource.Object) bool {
	if a.Key != b.Key || !a.Created.Equal(b.Created) || !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations) {
		return false
	}
	x, okX := a.Spec.(proto.Message)
	y, okY := b.Spec.(proto.Message)
	if okX && okY {
		return proto.Equal(x, y)
	}
	return reflect.DeepEqual(a.Spec, b.Spec)
}

func (m *Mesh) diffServices(prev *Mesh, d Diff) {
	if len(m.services) > 0 && len(prev.services) > 0 && &m.services[0] == &prev.services[0] && len(m.services) == len(prev.services) {
		return
	}
	for host, list := range m.byHost {
		if !slices.EqualFunc(list, prev.byHost[host], equalService) {
			d.Services[host] = true
		}
	}
	for host := range prev.byHost {
		if _, ok := m.byHost[host]; !ok {
			d.Services[host] = true
		}
	}
}

func equalService(a, b *Service) bool {
	x, y := *a, *b
	x.Object, y.Object = nil, nil
	return reflect.DeepEqual(x, y)
}

func equalEndpoint(a, b *Endpoint) bool {
	return a == b || reflect.DeepEqual(a, b)
}

// equalWorkload ignores what proxies do not see: annotations and readiness,
// which reaches them as endpoints.
func equalWorkload(a, b *Workload) bool {
	return a.Name == b.Name && a.Namespace == b.Namespace && a.ServiceAccount == b.ServiceAccount &&
		a.Sidecar == b.Sidecar && a.Locality == b.Locality && a.OwnerName == b.OwnerName && a.OwnerKind == b.OwnerKind &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.IPs, b.IPs) &&
		slices.Equal(a.Ports, b.Ports)
}
