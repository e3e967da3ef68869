package snapshot

import (
	"maps"
	"strings"
	"testing"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func cloned(in Resources) Resources {
	return Resources{
		Listeners: maps.Clone(in.Listeners), Clusters: maps.Clone(in.Clusters),
		Endpoints: maps.Clone(in.Endpoints), Routes: maps.Clone(in.Routes),
	}
}

const users = "outbound|8080||user-service.default.svc.cluster.local"

func TestCompileSharesWhatDidNotChange(t *testing.T) {
	in := loadReference(t, "testdata/istiod/01-sidecar-go-app.json.gz")
	s1, _ := Compile(in, nil)
	s2, rejected := Compile(cloned(in), s1)
	if len(rejected) > 0 || s2.Version != s1.Version+1 {
		t.Fatal(s2.Version, rejected)
	}
	for name, c := range s1.Clusters {
		if s2.Clusters[name] != c {
			t.Errorf("cluster %s was made anew", name)
		}
	}
	for name, l := range s1.Listeners {
		if s2.Listeners[name] != l {
			t.Errorf("listener %s was made anew", name)
		}
	}

	// One route table changes: its listener follows, its clusters do not.
	in2 := cloned(in)
	m := proto.Clone(in.Routes["8080"]).(*routepb.RouteConfiguration)
	m.VirtualHosts[0].Routes[0].Name = "renamed"
	in2.Routes["8080"] = m
	s3, _ := Compile(in2, s2)
	old, next := s2.Listeners["0.0.0.0_8080"], s3.Listeners["0.0.0.0_8080"]
	if old == next || next.Chains[0].HTTP.Routes.Hosts[0].Routes[0].Name != "renamed" ||
		old.Chains[0].HTTP.Routes.Hosts[0].Routes[0].Name == "renamed" {
		t.Error("the new route table did not come in, or the old snapshot changed")
	}
	if s3.Listeners["0.0.0.0_80"] != s2.Listeners["0.0.0.0_80"] || s3.Clusters[users] != s2.Clusters[users] ||
		&next.Chains[0].HTTP.Filters[0] != &old.Chains[0].HTTP.Filters[0] {
		t.Error("more changed than had to")
	}

	// Endpoints change: only that cluster, and its TLS stays.
	in3 := cloned(in2)
	e := proto.Clone(in.Endpoints[users]).(*endpointpb.ClusterLoadAssignment)
	e.Endpoints = nil
	in3.Endpoints[users] = e
	s4, _ := Compile(in3, s3)
	if len(s4.Clusters[users].Endpoints) != 0 || !s4.Clusters[users].Warm || len(s3.Clusters[users].Endpoints) == 0 ||
		s4.Clusters[users].Transports[0].TLS != s3.Clusters[users].Transports[0].TLS {
		t.Error("endpoints did not change alone")
	}
}

func TestCompileRefusesOneResourceAlone(t *testing.T) {
	in := loadReference(t, "testdata/istiod/01-sidecar-go-app.json.gz")
	s1, _ := Compile(in, nil)
	in2 := cloned(in)
	bad := proto.Clone(in.Clusters[users]).(*clusterpb.Cluster)
	bad.LbSubsetConfig = &clusterpb.Cluster_LbSubsetConfig{}
	in2.Clusters[users] = bad
	in2.Routes["8080"] = &anypb.Any{TypeUrl: TypeCluster}
	in2.Listeners["0.0.0.0_80"] = &listenerpb.Listener{Name: "0.0.0.0_80"}
	in2.Listeners["new"] = &listenerpb.Listener{Name: "other"}
	s2, rejected := Compile(in2, s1)
	got := map[string]string{}
	for _, r := range rejected {
		got[r.Name] = r.Reason
		if strings.Contains(r.Reason, "\n") {
			t.Errorf("%q has more than one line", r.Reason)
		}
	}
	if len(got) != 4 || got[users] != "lb_subset_config is not supported" || got["new"] != `name is "other"` {
		t.Errorf("refused: %v", got)
	}
	if s2.Clusters[users] != s1.Clusters[users] || s2.Listeners["0.0.0.0_80"] != s1.Listeners["0.0.0.0_80"] ||
		s2.Listeners["0.0.0.0_8080"] != s1.Listeners["0.0.0.0_8080"] || s2.Listeners["new"] != nil {
		t.Error("the last good version did not stay")
	}
	// The refused version stays refused, the good one comes back by itself.
	if _, rejected := Compile(in2, s2); len(rejected) != 4 {
		t.Errorf("second time: %v", rejected)
	}
	if s3, rejected := Compile(in, s2); len(rejected) != 0 || s3.Clusters[users] != s1.Clusters[users] {
		t.Error("going back made something anew")
	}
}

func TestWarming(t *testing.T) {
	in := loadReference(t, "testdata/istiod/01-sidecar-go-app.json.gz")
	s1, _ := Compile(in, nil)
	active, _ := Warmed(s1, nil, nil)

	// A route to a cluster without endpoints answer holds its listener back.
	in2 := cloned(in)
	c := proto.Clone(in.Clusters[users]).(*clusterpb.Cluster)
	c.Name, c.EdsClusterConfig.ServiceName = "new", "new"
	in2.Clusters["new"] = c
	m := proto.Clone(in.Routes["8080"]).(*routepb.RouteConfiguration)
	m.VirtualHosts[0].Routes = []*routepb.Route{{
		Match:  &routepb.RouteMatch{PathSpecifier: &routepb.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routepb.Route_Route{Route: &routepb.RouteAction{ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: "new"}}},
	}}
	in2.Routes["8080"] = m
	delete(in2.Clusters, users) // what the held back listener names must survive
	s2, _ := Compile(in2, s1)
	now, waiting := Warmed(s2, active, nil)
	if len(waiting) != 1 || waiting[0] != (Waiting{Listener: "0.0.0.0_8080", For: "endpoints of new"}) {
		t.Fatalf("waiting: %v", waiting)
	}
	if now.Listeners["0.0.0.0_8080"] != active.Listeners["0.0.0.0_8080"] || now.Clusters[users] == nil {
		t.Error("the listener in force changed, or lost its cluster")
	}
	in2.Endpoints["new"] = &endpointpb.ClusterLoadAssignment{ClusterName: "new"}
	s3, _ := Compile(in2, s2)
	now, waiting = Warmed(s3, now, nil)
	if len(waiting) != 0 || now.Listeners["0.0.0.0_8080"] != s3.Listeners["0.0.0.0_8080"] || now.Clusters[users] != nil {
		t.Errorf("after the answer: %v", waiting)
	}

	// Without its route table a new listener does not appear at all.
	in3 := cloned(in)
	delete(in3.Routes, "8080")
	s4, _ := Compile(in3, nil)
	first, waiting := Warmed(s4, nil, nil)
	if first.Listeners["0.0.0.0_8080"] != nil || len(waiting) == 0 || waiting[0].For != "route 8080" {
		t.Errorf("waiting: %v", waiting)
	}
}

// FuzzCompile feeds damaged resources of every type: whatever the bytes, there
// is a snapshot, and the tables in it can be used.
func FuzzCompile(f *testing.F) {
	types := []string{TypeListener, TypeRoute, TypeCluster, TypeEndpoint}
	in := loadReference(f, "testdata/istiod/06-sidecar-tcp-svc.json.gz")
	for i, m := range []map[string]proto.Message{in.Listeners, in.Routes, in.Clusters, in.Endpoints} {
		for _, msg := range m {
			data, err := proto.Marshal(msg)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(i), data)
		}
	}
	base, _ := Compile(in, nil)
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		typ := types[int(kind)%len(types)]
		a := &anypb.Any{TypeUrl: typ, Value: data}
		next, name := cloned(in), "x"
		switch typ {
		case TypeListener:
			var m listenerpb.Listener
			if proto.Unmarshal(data, &m) == nil && m.GetName() != "" {
				name = m.GetName()
			}
			next.Listeners[name] = a
		case TypeRoute:
			var m routepb.RouteConfiguration
			if proto.Unmarshal(data, &m) == nil {
				name = m.GetName()
			}
			next.Routes[name] = a
		case TypeCluster:
			var m clusterpb.Cluster
			if proto.Unmarshal(data, &m) == nil {
				name = m.GetName()
			}
			next.Clusters[name] = a
		case TypeEndpoint:
			next.Endpoints[users] = a
		}
		s, rejected := Compile(next, base)
		for _, r := range rejected {
			if r.Reason == "" || r.Type == "" {
				t.Fatalf("refused without reason: %+v", r)
			}
		}
		h := head("GET", "user-service:8080", "/a/b?c=d", "x", "y")
		for _, l := range s.Listeners {
			l.Match(ConnInfo{Transport: TransportRaw, ALPN: []string{"http/1.1"}})
			for c := range l.allChains() {
				if c.HTTP == nil {
					continue
				}
				if c.HTTP.Routes == nil {
					t.Fatal("manager without routes")
				}
				if v := c.HTTP.Routes.VirtualHost(h.Authority()); v != nil {
					v.Match(h, 1, &Scratch{})
				}
				for _, flt := range c.HTTP.Filters {
					if flt.RBAC != nil {
						flt.RBAC.Evaluate(&Subject{Head: h})
					}
				}
			}
		}
		Warmed(s, base, nil)
	})
}
