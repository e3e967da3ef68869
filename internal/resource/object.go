package resource

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lateen.dev/lateen/internal/finding"
)

// Raw is the Spec of an object whose kind is recognised and not decoded: its
// whole JSON form.
type Raw struct {
	Object map[string]any
}

// Findings returns what decoding found wrong inside the object.
func (o *Object) Findings() []finding.Finding { return o.problems }

// decodeRoot makes the object (or, for a List, the objects) of a document.
func decodeRoot(t *Text, root *yaml.Node) ([]*Object, []finding.Finding) {
	at := func(n *yaml.Node) finding.Position {
		return finding.Position{File: t.Name, Line: n.Line, Column: n.Column}
	}
	root = resolveAlias(root)
	if root.Kind != yaml.MappingNode {
		return nil, []finding.Finding{finding.New(finding.NoKind, finding.Object{}, "", at(root),
			"the document is no object").WithHint("every manifest needs apiVersion, kind and metadata.name")}
	}
	apiVersion, kind := text(root, "apiVersion"), text(root, "kind")
	if kind == "" || apiVersion == "" {
		return nil, []finding.Finding{noKind(t, root, apiVersion, kind)}
	}
	if kind == "List" || strings.HasSuffix(kind, "List") && child(root, "items") != nil {
		return decodeList(t, root)
	}
	group, version, _ := cutGroup(apiVersion)
	ref := finding.Object{Kind: kind, Namespace: text(child(root, "metadata"), "namespace"), Name: text(child(root, "metadata"), "name")}
	info, ok := kindByName(group, kind)
	if !ok {
		return nil, []finding.Finding{unknownKind(ref, at(keyOf(root, "kind")), group, kind, apiVersion)}
	}
	if !contains(info.Versions, version) {
		return nil, []finding.Finding{finding.Newf(finding.UnservedVersion, ref, "apiVersion", at(keyOf(root, "apiVersion")),
			"%s is not served as %s", kind, apiVersion).
			WithHint("use %s", joinGroup(group, info.Versions[0]))}
	}
	o, fs := decodeObject(t, root, info, apiVersion)
	if o == nil {
		return nil, fs
	}
	return []*Object{o}, fs
}

func decodeList(t *Text, root *yaml.Node) ([]*Object, []finding.Finding) {
	var objects []*Object
	var findings []finding.Finding
	items := resolveAlias(child(root, "items"))
	if items == nil || items.Kind != yaml.SequenceNode {
		return nil, nil
	}
	for _, item := range items.Content {
		if item.Kind == yaml.AliasNode {
			findings = append(findings, finding.New(finding.Expansion, finding.Object{Kind: "List"}, "items",
				finding.Position{File: t.Name, Line: item.Line, Column: item.Column}, "a list's items cannot be aliases"))
			continue
		}
		os, fs := decodeRoot(t, item)
		objects, findings = append(objects, os...), append(findings, fs...)
	}
	return objects, findings
}

// noKind explains a document that is no manifest: a fragment that people keep
// to paste into another, or plain other YAML.
func noKind(t *Text, root *yaml.Node, apiVersion, kind string) finding.Finding {
	pos := finding.Position{File: t.Name, Line: root.Line, Column: root.Column}
	if FragmentOf(root) == ContainerFragment {
		return finding.New(finding.Fragment, finding.Object{}, "", pos,
			"these are fields of a container, not a manifest; by themselves they have no effect").
			WithHint("move them into the container they are for")
	}
	missing := "apiVersion and kind"
	switch {
	case kind != "":
		missing = "apiVersion"
	case apiVersion != "":
		missing = "kind"
	}
	return finding.Newf(finding.NoKind, finding.Object{Kind: kind}, "", pos, "the document has no %s", missing).
		WithHint("every manifest needs apiVersion, kind and metadata.name")
}

// Fragment tells what a document that is no manifest is a part of.
type Fragment uint8

// The fragments that are understood.
const (
	NoFragment Fragment = iota
	// ContainerFragment holds fields of a container: probes, resources, env.
	ContainerFragment
	// PodFragment is a Pod without a name and containers: labels and
	// annotations for a pod template.
	PodFragment
)

// FragmentOf tells whether a document is a part of a manifest.
func FragmentOf(root *yaml.Node) Fragment {
	if root == nil || root.Kind != yaml.MappingNode || len(root.Content) == 0 {
		return NoFragment
	}
	if text(root, "kind") == "Pod" {
		meta := child(root, "metadata")
		if text(meta, "name") == "" && child(root, "spec") == nil &&
			(child(meta, "annotations") != nil || child(meta, "labels") != nil) {
			return PodFragment
		}
		return NoFragment
	}
	container := map[string]bool{
		"livenessProbe": true, "readinessProbe": true, "startupProbe": true, "resources": true,
		"env": true, "envFrom": true, "volumeMounts": true, "lifecycle": true, "securityContext": true, "ports": true,
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if !container[root.Content[i].Value] {
			return NoFragment
		}
	}
	return ContainerFragment
}

func unknownKind(ref finding.Object, pos finding.Position, group, kind, apiVersion string) finding.Finding {
	if hint := retired(group, kind); hint != "" {
		return finding.Newf(finding.RetiredKind, ref, "kind", pos, "%s of %s was retired and has no effect", kind, apiVersion).
			WithHint("%s", hint)
	}
	f := finding.Newf(finding.UnknownKind, ref, "kind", pos, "kind %s of %s is not known here and was left out", kind, apiVersion).
		WithHint("check apiVersion and kind; other kinds than Kubernetes' and Istio's have no effect here")
	var names []string
	for _, k := range Kinds() {
		if k.Name == kind {
			return f.WithHint("%s is in group %q: apiVersion: %s", kind, k.Group, joinGroup(k.Group, k.Versions[0]))
		}
		names = append(names, k.Name)
	}
	if near := nearest(kind, names); near != "" {
		return f.WithHint("did you mean %s?", near)
	}
	return f
}

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.:]*[a-z0-9])?$`)

// top is the shape of a whole manifest of an Istio kind.
type top struct {
	opaque
	spec shape
}

func (top) kind() shapeKind { return objectShape }
func (top) names() []string { return []string{"apiVersion", "kind", "metadata", "spec", "status"} }
func (top) id() any         { return "manifest" }
func (m top) field(name string) (shape, bool) {
	switch name {
	case "apiVersion", "kind":
		return goShape{reflect.TypeFor[string]()}, true
	case "metadata":
		return typeShape(reflect.TypeFor[metav1.ObjectMeta]()), true
	case "spec":
		return m.spec, true
	case "status":
		return opaque{}, true
	}
	return nil, false
}

// shape returns the shape of a manifest of the kind.
func (k KindInfo) shape() shape {
	switch {
	case k.Raw:
		return opaque{}
	case k.Istio():
		return top{spec: messageShape(k.message().ProtoReflect().Descriptor(), false)}
	}
	return typeShape(k.object)
}

func decodeObject(t *Text, root *yaml.Node, info KindInfo, apiVersion string) (*Object, []finding.Finding) {
	o := &Object{APIVersion: apiVersion, Source: t.Name, fields: positions{text: t, root: root}}
	meta := child(root, "metadata")
	o.Key = Key{Kind: info.Kind, Namespace: text(meta, "namespace"), Name: text(meta, "name")}
	if info.ClusterScoped {
		o.Namespace = ""
	} else if o.Namespace == "" {
		o.Namespace = "default"
	}
	if o.Name == "" || !validName.MatchString(o.Name) || len(o.Name) > 253 {
		return nil, []finding.Finding{badName(o, root)}
	}
	w := &walker{object: o.Object(), pos: o.position, root: info.shape()}
	v, ok := w.value(root, w.root, "")
	tree, _ := v.(map[string]any)
	if !ok || tree == nil {
		tree = map[string]any{}
	}
	o.fill(tree, info, w)
	o.problems = w.findings
	return o, nil
}

func badName(o *Object, root *yaml.Node) finding.Finding {
	if FragmentOf(root) == PodFragment {
		return finding.New(finding.Fragment, o.Object(), "metadata", o.Pos("metadata"),
			"this Pod has neither a name nor containers: it is a part of a pod template; by itself it has no effect").
			WithHint("move its annotations and labels into the template of the Deployment they are for")
	}
	if o.Name == "" {
		return finding.Newf(finding.BadName, o.Object(), "metadata.name", o.Pos("metadata"), "%s has no metadata.name", o.Kind)
	}
	return finding.Newf(finding.BadName, o.Object(), "metadata.name", o.ValuePos("metadata.name"),
		"%q is not a valid name", clip(o.Name, 80)).WithHint("use lower-case letters, digits, '-' and '.'")
}

// fill decodes the checked tree into the typed form.
func (o *Object) fill(tree map[string]any, info KindInfo, w *walker) {
	var meta metav1.ObjectMeta
	if m, ok := tree["metadata"].(map[string]any); ok {
		o.decodeInto(m, &meta, "metadata", w)
	}
	meta.Name, meta.Namespace = o.Name, o.Namespace
	o.Labels, o.Annotations, o.Created = meta.Labels, meta.Annotations, meta.CreationTimestamp.Time
	tree["apiVersion"], tree["kind"] = o.APIVersion, info.Name
	if m, ok := tree["metadata"].(map[string]any); ok && o.Namespace != "" {
		m["namespace"] = o.Namespace
	}
	switch {
	case info.Raw:
		o.Spec = &Raw{Object: tree}
	case info.Istio():
		m := info.message()
		if spec, ok := tree["spec"].(map[string]any); ok {
			o.decodeProto(spec, m, "spec", w)
		}
		o.Spec, o.meta = m, &meta
	default:
		v := reflect.New(info.object).Interface()
		o.decodeInto(tree, v, "", w)
		o.Spec = v
	}
}

func (o *Object) decodeInto(tree map[string]any, v any, path string, w *walker) {
	data, err := json.Marshal(tree)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		w.report(finding.WrongType, path, o.Find(path).Node(), "", "%s does not decode: %v", lastOf(path), err)
	}
}

func (o *Object) decodeProto(tree map[string]any, m proto.Message, path string, w *walker) {
	data, err := json.Marshal(tree)
	if err == nil {
		err = protojson.UnmarshalOptions{DiscardUnknown: true, AllowPartial: true}.Unmarshal(data, m)
	}
	if err != nil {
		w.report(finding.WrongType, path, o.Find(path).Node(), "", "%s does not decode: %s", lastOf(path), protoError(err))
	}
}

// protoError is a protojson error without the library's prefix, which varies
// from build to build on purpose.
func protoError(err error) string {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	if _, rest, ok := strings.Cut(text, "): "); ok && strings.HasPrefix(text, "proto:") {
		return rest
	}
	return strings.TrimPrefix(text, "proto: ")
}

// JSON returns the object in Kubernetes' JSON form.
func (o *Object) JSON() ([]byte, error) {
	switch s := o.Spec.(type) {
	case *Raw:
		return json.Marshal(s.Object)
	case proto.Message:
		spec, err := protojson.Marshal(s)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", o.Key, err)
		}
		var compact bytes.Buffer // protojson varies its blanks on purpose
		if err := json.Compact(&compact, spec); err != nil {
			return nil, fmt.Errorf("encode %s: %w", o.Key, err)
		}
		info, _ := LookupKind(o.Kind)
		return json.Marshal(struct {
			APIVersion string             `json:"apiVersion"`
			Kind       string             `json:"kind"`
			Metadata   *metav1.ObjectMeta `json:"metadata"`
			Spec       json.RawMessage    `json:"spec"`
		}{o.APIVersion, info.Name, o.metadata(), compact.Bytes()})
	}
	data, err := json.Marshal(o.Spec)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.Key, err)
	}
	return data, nil
}

func (o *Object) metadata() *metav1.ObjectMeta {
	if o.meta != nil {
		return o.meta
	}
	m := &metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, Labels: o.Labels, Annotations: o.Annotations}
	if !o.Created.IsZero() {
		m.CreationTimestamp = metav1.NewTime(o.Created)
	}
	return m
}

func child(n *yaml.Node, key string) *yaml.Node {
	n = resolveAlias(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func keyOf(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i]
		}
	}
	return n
}

// text returns the scalar under key, "" for none.
func text(n *yaml.Node, key string) string {
	c := resolveAlias(child(n, key))
	if c == nil || c.Kind != yaml.ScalarNode || c.ShortTag() == "!!null" {
		return ""
	}
	return c.Value
}

func cutGroup(apiVersion string) (group, version string, ok bool) {
	if group, version, ok = strings.Cut(apiVersion, "/"); ok {
		return group, version, true
	}
	return "", apiVersion, true
}

func joinGroup(group, version string) string {
	if group == "" {
		return version
	}
	return group + "/" + version
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}
