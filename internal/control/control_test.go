package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/finding"
)

// plane is a running control plane with its files.
type plane struct {
	t     *testing.T
	dir   string // of manifests
	data  string
	xds   string
	plain string
	debug string
	api   *api.Client
	stop  func()
}

const services = `apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: fixed}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out}
spec:
  hosts: [api.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
`

const virtualService = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http: [{name: NAME, route: [{destination: {host: web}}]}]
`

func newPlane(t *testing.T) *plane {
	leak(t)
	p := &plane{t: t, dir: t.TempDir(), data: filepath.Join(t.TempDir(), ".lateen")}
	p.write("services.yaml", services)
	return p
}

// leak fails the test when goroutines outlive what is registered for cleanup
// after it.
func leak(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second)
		for runtime.NumGoroutine() > before {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<20)
				t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// write replaces a manifest in one step: a file that is read just between
// truncation and writing is an empty one.
func (p *plane) write(name, text string) {
	p.t.Helper()
	aside := filepath.Join(p.dir, "."+name)
	if err := os.WriteFile(aside, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(aside, filepath.Join(p.dir, name)); err != nil {
		p.t.Fatal(err)
	}
}

// start runs the control plane; change edits its options.
func (p *plane) start(change func(*Options)) {
	p.t.Helper()
	listen := func() (net.Listener, string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			p.t.Fatal(err)
		}
		return l, l.Addr().String()
	}
	o := Options{
		DataDir: p.data, Paths: []string{p.dir}, Log: slog.New(slog.DiscardHandler), Version: "test",
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		DebounceQuiet: 5 * time.Millisecond,
	}
	o.XDS, p.xds = listen()
	o.Plain, p.plain = listen()
	o.Debug, p.debug = listen()
	var err error
	socket := filepath.Join(p.data, "run", api.SocketName)
	if o.API, err = api.Listen(socket); err != nil {
		p.t.Fatal(err)
	}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, o) }()
	p.api = api.NewClient(socket)
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		p.api.Close()
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("Run: %v", err)
		}
	}
	p.t.Cleanup(p.stop)
}

// wait polls until ok, for what happens after a file was written.
func (p *plane) wait(what string, ok func() bool) {
	p.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			s, err := p.api.Status(context.Background())
			p.t.Fatalf("%s: not so after 10 s; status %+v, %v", what, s, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (p *plane) object(kind, name string) (api.ObjectItem, bool) {
	p.t.Helper()
	items, err := p.api.Objects(p.t.Context(), api.ObjectQuery{Kind: kind, Namespace: "default", Name: name})
	if err != nil {
		p.t.Fatal(err)
	}
	if len(items) == 0 {
		return api.ObjectItem{}, false
	}
	return items[0], true
}

func (p *plane) clusterIPs(name string) []string {
	p.t.Helper()
	item, _ := p.object("Service", name)
	var s struct {
		Spec struct {
			ClusterIPs []string `json:"clusterIPs"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(item.Object, &s); err != nil {
		p.t.Fatalf("%s: %v", name, err)
	}
	return s.Spec.ClusterIPs
}

func TestRun_addressesAreStable(t *testing.T) {
	p := newPlane(t)
	p.start(nil)
	first := p.clusterIPs("web")
	if len(first) != 2 || !strings.HasPrefix(first[0], "10.96.") || !strings.HasPrefix(first[1], "fd00:96::") {
		t.Fatalf("addresses %v", first)
	}
	if ips := p.clusterIPs("headless"); len(ips) != 0 {
		t.Errorf("a headless Service got %v", ips)
	}
	for _, kind := range []string{"Namespace", "ServiceAccount"} {
		items, err := p.api.Objects(t.Context(), api.ObjectQuery{Kind: kind, Name: "default"})
		if err != nil || len(items) == 0 || items[0].Source != "default" {
			t.Errorf("%s default: %v, %v", kind, items, err)
		}
	}
	p.write("services.yaml", services+"---\n"+strings.ReplaceAll(services[:strings.Index(services, "---")], "name: web", "name: another"))
	p.wait("another Service", func() bool { _, ok := p.object("Service", "another"); return ok })
	if got := p.clusterIPs("web"); !slices.Equal(got, first) {
		t.Errorf("after an edit %v, before %v", got, first)
	}
	p.stop()
	p.start(nil)
	if got := p.clusterIPs("web"); !slices.Equal(got, first) {
		t.Errorf("after a restart %v, before %v", got, first)
	}
}

func (p *plane) ruleName() string {
	item, _ := p.object("VirtualService", "web")
	for _, name := range []string{"good", "better"} {
		if strings.Contains(string(item.Object), `"name":"`+name+`"`) {
			return name
		}
	}
	return ""
}

func (p *plane) refused() bool {
	p.t.Helper()
	fs, err := p.api.Findings(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	worst, _ := finding.Worst(fs)
	return worst == finding.Error
}

func TestRun_lastGoodVersionStaysAlsoOverARestart(t *testing.T) {
	p := newPlane(t)
	p.write("vs.yaml", strings.ReplaceAll(virtualService, "NAME", "good"))
	p.start(nil)
	if p.ruleName() != "good" || p.refused() {
		t.Fatalf("rule %q, refused %v", p.ruleName(), p.refused())
	}
	p.write("vs.yaml", strings.ReplaceAll(virtualService, "{host: web}", "{hosst: web}"))
	p.wait("the error", p.refused)
	if p.ruleName() != "good" {
		t.Error("the last good version is gone")
	}
	p.stop()
	p.start(nil)
	if p.ruleName() != "good" || !p.refused() {
		t.Errorf("after a restart: rule %q, refused %v", p.ruleName(), p.refused())
	}
	p.stop()
	p.write("vs.yaml", "kind: [broken\n")
	p.start(nil)
	if p.ruleName() != "good" || !p.refused() {
		t.Errorf("unparsable at start: rule %q, refused %v", p.ruleName(), p.refused())
	}
	p.write("vs.yaml", strings.ReplaceAll(virtualService, "NAME", "better"))
	p.wait("mended", func() bool { return p.ruleName() == "better" && !p.refused() })
	if err := os.Remove(filepath.Join(p.dir, "vs.yaml")); err != nil {
		t.Fatal(err)
	}
	p.wait("removed", func() bool { _, ok := p.object("VirtualService", "web"); return !ok })
	p.stop()
	p.start(nil)
	if _, ok := p.object("VirtualService", "web"); ok {
		t.Error("a removed object came back from the last good versions")
	}
}

func TestApply_storesRefusesAndDeletes(t *testing.T) {
	p := newPlane(t)
	p.start(nil)
	ctx := t.Context()
	apply := func(text string) (api.ApplyResult, error) {
		t.Helper()
		return p.api.Apply(ctx, api.Applied{Manifests: []api.Manifest{{Source: "stdin", Data: []byte(text)}}})
	}
	good := "# why: a comment\n" + strings.ReplaceAll(virtualService, "NAME", "good")
	r, err := apply(good)
	if err != nil || len(r.Changed) != 1 || p.ruleName() != "good" {
		t.Fatalf("apply: %+v, %v", r, err)
	}
	stored, err := os.ReadFile(filepath.Join(p.data, "config", "default", "VirtualService", "web.yaml"))
	if err != nil || !strings.Contains(string(stored), "# why: a comment") {
		t.Errorf("stored %q, %v", stored, err)
	}
	if r, err = apply(good); err != nil || len(r.Changed) != 0 {
		t.Errorf("the same again: %+v, %v", r, err)
	}
	bad := strings.ReplaceAll(virtualService, "NAME", "better") + "---\n" + strings.ReplaceAll(virtualService, "hosts: [web]", "hosts: 7")
	if r, err = apply(strings.Replace(bad, "metadata: {name: web}", "metadata: {name: other}", 1)); err != nil || len(r.Changed) != 0 || len(r.Findings) == 0 {
		t.Errorf("half of it is broken: %+v, %v", r, err)
	}
	if p.ruleName() != "good" {
		t.Error("half of a refused apply was put in force")
	}
	var e *api.Error
	if _, err = apply(services); !errors.As(err, &e) || e.Code != api.CodeForbidden || !strings.Contains(e.Message, "services.yaml:") {
		t.Errorf("object of a file: %v", err)
	}
	if _, err = apply(strings.ReplaceAll(good, "{name: web}", `{name: web, namespace: "../../x"}`)); !errors.As(err, &e) || e.Code != api.CodeInvalid {
		t.Errorf("namespace that is a path: %v", err)
	}
	del := func(kind, name string) error {
		_, err := p.api.Delete(ctx, api.Deleted{Keys: []api.ObjectKey{{Kind: kind, Namespace: "default", Name: name}}})
		return err
	}
	if err := del("Service", "web"); !errors.As(err, &e) || e.Code != api.CodeForbidden {
		t.Errorf("delete object of a file: %v", err)
	}
	if err := del("VirtualService", "nobody"); !api.IsNotFound(err) {
		t.Errorf("delete nothing: %v", err)
	}
	p.stop()
	p.start(nil)
	if p.ruleName() != "good" {
		t.Error("an applied object did not survive a restart")
	}
	if err := del("VirtualService", "web"); err != nil {
		t.Error(err)
	}
	if _, ok := p.object("VirtualService", "web"); ok {
		t.Error("deleted, and still in force")
	}
}

func TestWatch_followsDesiredObjects(t *testing.T) {
	p := newPlane(t)
	p.start(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	events := make(chan string, 64)
	client := p.api
	go client.Watch(ctx, api.WatchOptions{Kinds: []string{"Service", "VirtualService"}}, func(e api.Event) error {
		events <- strings.TrimSpace(string(e.Type) + " " + e.Key.Name)
		return nil
	})
	want := func(step string) {
		t.Helper()
		select {
		case got := <-events:
			if got != step {
				t.Fatalf("got %q, want %q", got, step)
			}
		case <-ctx.Done():
			t.Fatalf("waiting for %q", step)
		}
	}
	for _, step := range []string{"put fixed", "put headless", "put web", "synced"} {
		want(step)
	}
	p.write("vs.yaml", strings.ReplaceAll(virtualService, "NAME", "good"))
	want("put web")
	if err := os.Remove(filepath.Join(p.dir, "vs.yaml")); err != nil {
		t.Fatal(err)
	}
	want("delete web")
}

func TestRun_secondOnTheSameDataSaysWhoRuns(t *testing.T) {
	p := newPlane(t)
	p.start(nil)
	p.wait("started", func() bool { _, err := p.api.Status(t.Context()); return err == nil })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = Run(t.Context(), Options{DataDir: p.data, XDS: l, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "process ") || !strings.Contains(err.Error(), "lateen down") {
		t.Errorf("got %v", err)
	}
	p.stop()
	if err := os.WriteFile(filepath.Join(p.data, "layout"), []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), Options{DataDir: p.data, XDS: l, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "newer lateen") {
		t.Errorf("newer layout: %v", err)
	}
}

func TestVIPs_collisionsAndFullPrefixes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vips.json")
	open := func() *vips {
		t.Helper()
		v, err := openVIPs(path, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := open()
	owners := make([]string, 14)
	for i := range owners {
		owners[i] = string(rune('a' + i))
	}
	got, err := v.assign(owners, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]bool{}
	for _, a := range got {
		if seen[a[0]] || a[0] == netip.MustParseAddr("10.0.0.0") || a[0] == netip.MustParseAddr("10.0.0.15") {
			t.Errorf("%v is given twice or reserved", a[0])
		}
		seen[a[0]] = true
	}
	full, err := v.assign(append(owners, "z"), nil)
	if err == nil || !strings.Contains(err.Error(), "for z") || len(full) != len(owners) {
		t.Errorf("a full prefix gave one more, or took from the others: %v, %v", full, err)
	}
	if err := v.save(); err != nil {
		t.Fatal(err)
	}
	w := open()
	again, err := w.assign(append(slices.Clone(owners[:13]), "z"), nil)
	if err != nil {
		t.Fatalf("an address of an owner that is away was not taken back: %v", err)
	}
	for _, o := range owners[:13] {
		if !slices.Equal(again[o], got[o]) {
			t.Errorf("%s moved from %v to %v", o, got[o], again[o])
		}
	}
	fixed := map[netip.Addr]bool{again["a"][0]: true}
	moved, err := w.assign([]string{"a", "b"}, fixed)
	if err != nil || fixed[moved["a"][0]] {
		t.Errorf("a keeps an address that a manifest names: %v, %v", moved, err)
	}
}

func TestDebounce_restsOrWaitsLongEnough(t *testing.T) {
	d := debounce{quiet: 10, most: 25}
	at := func(n int64) time.Time { return time.Unix(0, n) }
	if _, pending := d.wait(at(0)); pending {
		t.Error("pending without a change")
	}
	d.note(at(100))
	if w, _ := d.wait(at(104)); w != 6 {
		t.Errorf("wait %v, want 6", w)
	}
	d.note(at(108))
	d.note(at(116))
	d.note(at(124))
	if w, _ := d.wait(at(124)); w != 1 {
		t.Errorf("wait %v, want 1: the first change has waited long", w)
	}
	d.done()
	if _, pending := d.wait(at(130)); pending {
		t.Error("pending after done")
	}
}
