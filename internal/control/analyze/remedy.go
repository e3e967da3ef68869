package analyze

import (
	"bytes"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// remedies attaches edits to findings of decoding and validation, which know
// one object only.
type remedies struct {
	mesh      *mesh.Mesh
	byObject  map[finding.Object]*resource.Object
	templates []template
	texts     map[string]*resource.Text
}

func (r *remedies) attach(findings []finding.Finding) {
	for i := range findings {
		f := &findings[i]
		o := r.byObject[f.Object]
		switch {
		case f.Fix != nil:
		case f.Code == finding.Fragment:
			r.fragment(f)
		case o == nil:
		case f.Code == finding.Misplaced && o.Kind == resource.VirtualService:
			f.Fix = intoHTTPRoutes(o, f.Path)
		case f.Code == finding.ConsecutiveErrors:
			f.Fix = gatewayErrors(o, f.Path)
		case f.Code == finding.OpenCensusAgent && o.Kind == resource.KubeConfigMap:
			f.Fix = r.otlpProvider(o, f.Path)
		case f.Code == finding.MethodCase:
			f.Fix = upperCase(o, f.Path)
		case f.Code == finding.PrincipalScheme:
			f.Fix = withoutScheme(o, f.Path)
		}
	}
}

// intoHTTPRoutes moves a field that stands under spec into every http entry
// that routes somewhere and does not have it.
func intoHTTPRoutes(o *resource.Object, path string) *finding.Fix {
	name, ok := strings.CutPrefix(path, "spec.")
	fields := (&networkingpb.HTTPRoute{}).ProtoReflect().Descriptor().Fields()
	if !ok || fields.ByJSONName(name) == nil {
		return nil
	}
	t := o.Text()
	from, ok := blockEntry(t, o.Find(path))
	list := o.Find("spec.http")
	if !ok || !list.Exact || list.Value.Kind != yaml.SequenceNode {
		return nil
	}
	from = from.withComments()
	edits := []finding.Edit{from.remove()}
	var into []string
	for i, item := range list.Value.Content {
		at := resource.Item("spec.http", i)
		if o.Has(at+"."+name) || !o.Has(at+".route") {
			continue
		}
		last, indent, ok := itemEnd(t, list.Value, item)
		if !ok {
			return nil
		}
		edits = append(edits, insertAfter(t, last, from.indented(indent)))
		into = append(into, at)
	}
	if len(into) == 0 {
		return nil
	}
	return fixOf(fmt.Sprintf("move %s from spec into %s: under spec it has no effect", name, strings.Join(into, " and ")), edits...)
}

// gatewayErrors renames consecutiveErrors to what it used to count.
func gatewayErrors(o *resource.Object, path string) *finding.Fix {
	p := o.Find(path)
	parent := strings.TrimSuffix(path, ".consecutiveErrors")
	if o.Has(parent + ".consecutiveGatewayErrors") {
		if e, ok := blockEntry(o.Text(), p); ok {
			return fixOf("remove consecutiveErrors: consecutiveGatewayErrors is there already", e.remove())
		}
		return nil
	}
	e, ok := replace(o.Text(), p.Key, "consecutiveErrors", "consecutiveGatewayErrors")
	if !ok {
		return nil
	}
	return fixOf("consecutiveErrors is now consecutiveGatewayErrors, which counts the same answers: 502, 503 and 504", e)
}

func upperCase(o *resource.Object, path string) *finding.Fix {
	v := o.Find(path).Value
	if v == nil {
		return nil
	}
	e, ok := replace(o.Text(), v, v.Value, strings.ToUpper(v.Value))
	if !ok {
		return nil
	}
	return fixOf("HTTP methods are upper-case", e)
}

func withoutScheme(o *resource.Object, path string) *finding.Fix {
	e, ok := replace(o.Text(), o.Find(path).Value, "spiffe://", "")
	if !ok {
		return nil
	}
	return fixOf("principals are written without spiffe://", e)
}

const providerName = "opentelemetry"

// otlpProvider replaces openCensusAgent by an extension provider that sends
// OTLP to the same host.
func (r *remedies) otlpProvider(o *resource.Object, path string) *finding.Fix {
	t := o.Text()
	place := o.Find(path)
	host := endpointHost(scalarUnder(place.Value, "address"))
	from, ok := blockEntry(t, place)
	root := o.Find(resource.MeshConfigPath + "@")
	last, indent, rootOK := mapEnd(t, root)
	if host == "" || !ok || !rootOK {
		return nil
	}
	edits := []finding.Edit{from.remove()}
	if len(place.Parent.Content) == 2 {
		// Nothing else stands under tracing: it goes too.
		parent, ok := blockEntry(t, o.Find(strings.TrimSuffix(path, ".openCensusAgent")))
		if !ok {
			return nil
		}
		edits[0] = parent.remove()
	}
	nl := t.NewLine()
	pad := strings.Repeat(" ", indent)
	var add string
	if !hasProvider(r.mesh, providerName) {
		service := host
		if name, ns, ok := strings.Cut(host, "."); ok && !strings.Contains(ns, ".") {
			service = r.mesh.ServiceHost(name, ns)
		}
		item := pad + "- name: " + providerName + nl + pad + "  opentelemetry:" + nl +
			pad + "    service: " + service + nl + pad + "    port: 4317" + nl
		if list := o.Find(resource.MeshConfigPath + "@extensionProviders"); list.Exact {
			e, ok := blockEntry(t, list)
			if !ok || list.Value.Kind != yaml.SequenceNode || list.Value.Style&yaml.FlowStyle != 0 || len(list.Value.Content) == 0 {
				return nil
			}
			deep := list.Value.Content[0].Column - 3
			edits = append(edits, insertAfter(t, e.last, shiftLines(item, indent, max(deep, 0), nl)))
		} else {
			add += pad + "extensionProviders:" + nl + item
		}
	}
	if !r.tracingProviderNamed() && !o.Has(resource.MeshConfigPath+"@defaultProviders") {
		add += pad + "defaultProviders:" + nl + pad + "  tracing:" + nl + pad + "  - " + providerName + nl
	}
	if add != "" {
		edits = append(edits, insertAfter(t, last, add))
	}
	return fixOf(fmt.Sprintf("openCensusAgent is now the extension provider %q, which sends OTLP to %s:4317", providerName, host), edits...)
}

func shiftLines(lines string, from, to int, nl string) string {
	if from == to {
		return lines
	}
	var b strings.Builder
	for _, l := range strings.SplitAfter(lines, nl) {
		if l != "" {
			b.WriteString(strings.Repeat(" ", to) + strings.TrimPrefix(l, strings.Repeat(" ", from)))
		}
	}
	return b.String()
}

func scalarUnder(n *yaml.Node, key string) string {
	if v := get(n, key); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

func hasProvider(m *mesh.Mesh, name string) bool {
	p, ok := m.Provider(name)
	return ok && p.Config != nil
}

// tracingProviderNamed reports whether some Telemetry chooses a provider for
// traces, so that no default is needed.
func (r *remedies) tracingProviderNamed() bool {
	for _, t := range r.mesh.Telemetries() {
		for _, tr := range t.Spec.Tracing {
			if len(tr.Providers) > 0 {
				return true
			}
		}
	}
	return false
}

// fragment finds the one place that a part of a manifest belongs to.
func (r *remedies) fragment(f *finding.Finding) {
	t := r.texts[f.Pos.File]
	if t == nil {
		return
	}
	doc, ok := resource.DocumentAt(t, f.Pos.Line)
	if !ok {
		return
	}
	kind := resource.FragmentOf(doc.Root)
	var fits []place
	for _, target := range r.templates {
		if target.Path != "" || target.object.Kind == resource.KubePod {
			fits = append(fits, r.fit(kind, doc.Root, target)...)
		}
	}
	switch len(fits) {
	case 0:
		f.Hint = "no Deployment here fits; move it where it belongs"
	case 1:
		f.Hint = fmt.Sprintf("it fits %s (%s)", fits[0].target.object.Key, fits[0].target.object.Pos("metadata.name"))
		f.Fix = fits[0].merge(t, doc, kind)
	default:
		var names []string
		for _, p := range fits {
			names = append(names, p.target.object.Key.String()+" "+p.path)
		}
		f.Code, f.Message = finding.FragmentTarget, "this part of a manifest could belong to "+strings.Join(names, " or ")
		f.Hint = "move it into the one it is for"
	}
}

// place is where a fragment could go.
type place struct {
	target template
	path   string // of the container, or of the template's metadata
}

// fit returns the places of a template that a fragment fits: those that do not
// have its fields and have the ports its probes ask.
func (r *remedies) fit(kind resource.Fragment, root *yaml.Node, t template) []place {
	if kind == resource.PodFragment {
		if !r.injected(t) {
			return nil
		}
		return []place{{t, resource.Field(t.Path, "metadata")}}
	}
	ports := probePorts(root)
	var fits []place
	for _, c := range t.Containers {
		taken := false
		for j := 0; j+1 < len(root.Content); j += 2 {
			taken = taken || t.object.Has(c.Path+"."+root.Content[j].Value)
		}
		if !taken && declares(c, ports) && c.Name != "istio-proxy" {
			fits = append(fits, place{t, c.Path})
		}
	}
	return fits
}

// injected reports whether the pods of a template get a sidecar: by the label
// of their namespace, which "default" counts as having, or their own.
func (r *remedies) injected(t template) bool {
	if v, ok := t.Labels["sidecar.istio.io/inject"]; ok {
		return v == "true"
	}
	if v, ok := t.Annotations["sidecar.istio.io/inject"]; ok {
		return v == "true"
	}
	if ns, ok := r.mesh.Namespace(t.namespace); ok && ns.Labels["istio-injection"] != "" {
		return ns.Labels["istio-injection"] == "enabled"
	}
	return t.namespace == "default"
}

// probePorts returns the ports that the probes of a fragment ask.
func probePorts(root *yaml.Node) []string {
	var ports []string
	for i := 1; i < len(root.Content); i += 2 {
		for _, handler := range []string{"httpGet", "tcpSocket", "grpc"} {
			if p := scalarUnder(get(root.Content[i], handler), "port"); p != "" {
				ports = append(ports, p)
			}
		}
	}
	return ports
}

func declares(c resource.Container, ports []string) bool {
	for _, want := range ports {
		found := false
		for _, p := range c.Ports {
			found = found || fmt.Sprint(p.Number) == want || p.Name == want
		}
		if !found {
			return false
		}
	}
	return true
}

// merge moves the fragment into its place and takes it out of its own file.
func (p place) merge(t *resource.Text, doc resource.Document, kind resource.Fragment) *finding.Fix {
	into := p.target.object.Text()
	gone := finding.Edit{File: t.Name, Start: doc.Start, End: doc.End}
	if kind == resource.ContainerFragment {
		list := p.target.object.Find(p.path)
		last, indent, ok := itemEnd(into, list.Parent, list.Value)
		if !ok {
			return nil
		}
		lines := trimLines(t, doc)
		body := reindent(t, lines[0], lines[1], doc.Root.Column-1, indent)
		return fixOf(fmt.Sprintf("merge %s into the container of %s", t.Name, p.target.object.Key), insertAfter(into, last, body), gone)
	}
	edit, ok := p.mergeMetadata(t, into, doc.Root)
	if !ok {
		return nil
	}
	return fixOf(fmt.Sprintf("merge the annotations and labels of %s into the pod template of %s", t.Name, p.target.object.Key), append(edit, gone)...)
}

// mergeMetadata appends labels and annotations to those of a template.
func (p place) mergeMetadata(from, into *resource.Text, root *yaml.Node) ([]finding.Edit, bool) {
	var edits []finding.Edit
	meta := p.target.object.Find(p.path)
	metaLast, metaIndent, ok := mapEnd(into, meta)
	if !ok || !meta.Exact {
		return nil, false
	}
	for _, name := range []string{"labels", "annotations"} {
		src := get(get(root, "metadata"), name)
		if src == nil || !mapping(src) || len(src.Content) == 0 || src.Style&yaml.FlowStyle != 0 {
			continue
		}
		key, first, lastKey := keyNode(get(root, "metadata"), name), src.Content[0], src.Content[len(src.Content)-2]
		begin := min(key.Line+1, first.Line) // comments above the first one come along
		end := blockEnd(from, lastKey.Line, lastKey.Column-1, false)
		if have := p.target.object.Find(p.path + "." + name); have.Exact {
			last, indent, ok := mapEnd(into, have)
			if !ok {
				return nil, false
			}
			edits = append(edits, insertAfter(into, last, reindent(from, begin, end, first.Column-1, indent)))
			continue
		}
		text := strings.Repeat(" ", metaIndent) + name + ":" + into.NewLine() +
			reindent(from, begin, end, first.Column-1, metaIndent+2)
		edits = append(edits, insertAfter(into, metaLast, text))
	}
	return edits, len(edits) > 0
}

func keyNode(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i]
		}
	}
	return n
}

// trimLines returns the first and last line of a document without its marker
// and the blank lines around.
func trimLines(t *resource.Text, doc resource.Document) [2]int {
	first, last := t.Position(doc.Start).Line, t.Position(max(doc.End-1, doc.Start)).Line
	blank := func(n int) bool {
		l := bytes.TrimSpace(t.Line(n))
		return len(l) == 0 || string(l) == "---"
	}
	for first < last && blank(first) {
		first++
	}
	for last > first && blank(last) {
		last--
	}
	return [2]int{first, last}
}
