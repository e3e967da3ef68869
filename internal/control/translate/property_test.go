package translate_test

import (
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/resource"
)

var shopVIPs = map[string][]netip.Addr{"api.example.com": {netip.MustParseAddr("240.240.0.1"), netip.MustParseAddr("fd00:240::1")}}

// shopObjects decodes the golden input, ordered by key.
func shopObjects(t *testing.T, edit func(string) string) []*resource.Object {
	t.Helper()
	out := decode(t, edit(readText(t, filepath.Join("testdata", "shop.yaml"))))
	slices.SortFunc(out, func(a, b *resource.Object) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return out
}

func same(s string) string { return s }

// TestOrderDoesNotMatter builds the mesh from the same objects in any order.
func TestOrderDoesNotMatter(t *testing.T) {
	objects := shopObjects(t, same)
	m, _ := mesh.Build(mesh.Input{Objects: objects, VIPs: shopVIPs}, nil)
	want := map[string]*translate.Resources{}
	for name, n := range goldenNodes() {
		want[name] = translate.Build(m, n)
	}
	rapid.Check(t, func(rt *rapid.T) {
		shuffled := rapid.Permutation(objects).Draw(rt, "order")
		m, _ := mesh.Build(mesh.Input{Objects: shuffled, VIPs: shopVIPs}, nil)
		name := rapid.SampledFrom(slices.Sorted(maps.Keys(want))).Draw(rt, "node")
		if !equalResources(translate.Build(m, goldenNodes()[name]), want[name]) {
			rt.Fatalf("%s: another order of objects gives other resources", name)
		}
	})
}

// variants are edits of the golden input that change one object each.
var variants = []struct{ from, to string }{
	{"weight: 90", "weight: 80"},
	{"version: v2}}\nspec: {serviceAccountName: orders", "version: v3}}\nspec: {serviceAccountName: other"},
	{"mode: STRICT", "mode: DISABLE"},
	{"simple: ROUND_ROBIN", "simple: RANDOM"},
	{"randomSamplingPercentage: 50", "randomSamplingPercentage: 60"},
	{"paths: [/admin*]", "paths: [/root*]"},
	{"port: 9001", "port: 9011"},
	{"hosts: [shop.example.com]\n  gateways", "hosts: [store.example.com]\n  gateways"},
	{"podIPs: [{ip: 10.1.0.5}]", "podIPs: [{ip: 10.1.0.55}]"},
	{"credentialName: shop-cert", "credentialName: absent"},
	{"defaultProviders: {metrics: [prometheus]}", "defaultProviders: {metrics: [prometheus]}\n    accessLogFile: /dev/stdout"},
}

// TestIncrementalEqualsScratch walks through random edits. A model built on the
// last one must be the same as one built from nothing, and a proxy that Affects
// spares must be sent exactly what it has.
func TestIncrementalEqualsScratch(t *testing.T) {
	base := shopObjects(t, same)
	edited := make([]map[resource.Key]*resource.Object, len(variants))
	for i, v := range variants {
		if !strings.Contains(readText(t, filepath.Join("testdata", "shop.yaml")), v.from) {
			t.Fatalf("variant %d: the input has no %q", i, v.from)
		}
		edited[i] = map[resource.Key]*resource.Object{}
		for _, o := range shopObjects(t, func(s string) string { return strings.Replace(s, v.from, v.to, 1) }) {
			edited[i][o.Key] = o
		}
	}
	nodes := goldenNodes()
	names := slices.Sorted(maps.Keys(nodes))
	rapid.Check(t, func(rt *rapid.T) {
		objects := map[resource.Key]*resource.Object{}
		for _, o := range base {
			objects[o.Key] = o
		}
		prev, _ := mesh.Build(mesh.Input{Objects: slices.Collect(maps.Values(objects)), VIPs: shopVIPs}, nil)
		name := rapid.SampledFrom(names).Draw(rt, "node")
		had := translate.Build(prev, nodes[name])
		for range rapid.IntRange(1, 4).Draw(rt, "steps") {
			key := rapid.SampledFrom(base).Draw(rt, "object").Key
			switch rapid.IntRange(0, 2).Draw(rt, "what") {
			case 0:
				delete(objects, key)
			case 1:
				maps.Copy(objects, edited[rapid.IntRange(0, len(edited)-1).Draw(rt, "variant")])
			case 2:
				i := slices.IndexFunc(base, func(o *resource.Object) bool { return o.Key == key })
				objects[key] = base[i]
			}
			in := mesh.Input{Objects: slices.Collect(maps.Values(objects)), VIPs: shopVIPs}
			next, diff := mesh.Build(in, prev)
			scratch, _ := mesh.Build(in, nil)
			got := translate.Build(next, nodes[name])
			if !equalResources(got, translate.Build(scratch, nodes[name])) {
				rt.Fatalf("%s: built on the last model, resources differ from those built from nothing", name)
			}
			if !translate.Affects(next, nodes[name], diff) && !equalResources(got, had) {
				rt.Fatalf("%s: Affects spared a proxy whose resources changed: %+v", name, diff)
			}
			prev, had = next, got
		}
	})
}

// TestCommentsPushNothing adds comments at random places: only the table of
// origins may change, and nothing at all for proxies without it.
func TestCommentsPushNothing(t *testing.T) {
	in := func(edit func(string) string) mesh.Input {
		return mesh.Input{Objects: shopObjects(t, edit), VIPs: shopVIPs}
	}
	before, _ := mesh.Build(in(same), nil)
	lines := strings.Count(readText(t, filepath.Join("testdata", "shop.yaml")), "\n")
	rapid.Check(t, func(rt *rapid.T) {
		at := rapid.IntRange(0, lines).Draw(rt, "line")
		after, diff := mesh.Build(in(func(s string) string {
			all := strings.SplitAfter(s, "\n")
			indent := ""
			if at < len(all) {
				indent = all[at][:len(all[at])-len(strings.TrimLeft(all[at], " "))]
			}
			if strings.HasPrefix(indent, "    ") {
				return s // inside the block text of the mesh configuration
			}
			return strings.Join(slices.Insert(all, at, indent+"# a remark\n"), "")
		}), before)
		if !diff.Empty() && !diff.OriginsOnly() {
			rt.Fatalf("a comment is a change: %+v", diff)
		}
		for name, n := range goldenNodes() {
			a, b := translate.Build(before, n), translate.Build(after, n)
			delete(a.ByType, translate.OriginType)
			delete(b.ByType, translate.OriginType)
			if !equalResources(a, b) {
				rt.Fatalf("%s: a comment changes resources", name)
			}
			if n.Caps == nil && translate.Affects(after, n, diff) {
				rt.Fatalf("%s: a comment affects a proxy without origins", name)
			}
		}
	})
}

// TestOriginsMove demands that the table of origins follows the lines.
func TestOriginsMove(t *testing.T) {
	n := goldenNodes()["orders-lateen-dual"]
	table := func(edit func(string) string) []byte {
		m, _ := mesh.Build(mesh.Input{Objects: shopObjects(t, edit), VIPs: shopVIPs}, nil)
		return wire(translate.Build(m, n).ByType[translate.OriginType][translate.Origins])
	}
	if string(table(same)) == string(table(func(s string) string { return "# one more line\n" + s })) {
		t.Error("lines moved and the table of origins did not")
	}
}
