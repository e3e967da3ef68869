package nft

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParseCapture_annotations(t *testing.T) {
	got, err := ParseCapture(map[string]string{
		"traffic.sidecar.istio.io/excludeOutboundPorts":    "3306, 5432",
		"traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8,fd00::1",
		"traffic.sidecar.istio.io/includeInboundPorts":     "",
		"unrelated": "x",
	})
	want := Capture{
		DNS: true, ExcludeOutboundPorts: []uint16{3306, 5432}, IncludeOutboundSet: true, IncludeInboundSet: true,
		IncludeOutbound: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::1/128")},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v %v, want %+v", got, err, want)
	}
	for name, value := range map[string]string{"excludeInboundPorts": "http", "excludeOutboundIPRanges": "10.0.0.0/99", "kubevirtInterfaces": "tap0"} {
		if _, err := ParseCapture(map[string]string{"traffic.sidecar.istio.io/" + name: value}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

func FuzzParseCapture(f *testing.F) {
	f.Add("excludeOutboundPorts", "80,443")
	f.Add("includeOutboundIPRanges", "*")
	f.Fuzz(func(t *testing.T, name, value string) {
		c, err := ParseCapture(map[string]string{annotationPrefix + name: value})
		if err == nil && !c.DNS {
			t.Error("DNS capture was lost")
		}
	})
}
