package resource

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestWithClusterIPs_leavesTheOriginalAlone(t *testing.T) {
	objects, findings := Decode("s.yaml", []byte("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"))
	if len(objects) != 1 || len(findings) != 0 {
		t.Fatal(objects, findings)
	}
	ips := []netip.Addr{netip.MustParseAddr("10.96.0.7"), netip.MustParseAddr("fd00::7")}
	next := objects[0].WithClusterIPs(ips)
	if v, _ := next.Service(); !slices.Equal(v.ClusterIPs, ips) {
		t.Errorf("got %v", v.ClusterIPs)
	}
	if v, _ := objects[0].Service(); len(v.ClusterIPs) != 0 {
		t.Errorf("the original has %v", v.ClusterIPs)
	}
	data, err := next.JSON()
	if err != nil || !strings.Contains(string(data), `"clusterIP":"10.96.0.7"`) || !strings.Contains(string(data), `"ipFamilies":["IPv4","IPv6"]`) {
		t.Errorf("%s, %v", data, err)
	}
	if next.Pos("spec.ports") != objects[0].Pos("spec.ports") {
		t.Error("the place was lost")
	}
}
