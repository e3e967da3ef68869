package resource

import (
	"encoding/json"
	"fmt"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"lateen.dev/lateen/internal/finding"
)

// MeshConfigPath is where Istio keeps its MeshConfig: in the ConfigMap "istio"
// of the root namespace.
const MeshConfigPath = "data.mesh"

// IsMeshConfig reports whether o is the ConfigMap that holds the MeshConfig for
// the given root namespace.
func IsMeshConfig(o *Object, rootNamespace string) bool {
	return o.Kind == KubeConfigMap && o.Name == "istio" && o.Namespace == rootNamespace
}

// MeshConfig decodes the MeshConfig in a ConfigMap. It returns what could be
// decoded, without Istio's defaults, and what is wrong with the rest; fields it
// could not read are as if they were not there. It is nil when the text does
// not parse at all or there is none.
func MeshConfig(o *Object) (*meshconfig.MeshConfig, []finding.Finding) {
	m := &meshconfig.MeshConfig{}
	found, findings := decodeEmbedded(o, MeshConfigPath, m)
	if !found {
		return nil, findings
	}
	return m, findings
}

// decodeEmbedded decodes the YAML in a string field into m, strictly.
func decodeEmbedded(o *Object, path string, m proto.Message) (bool, []finding.Finding) {
	cm, ok := o.ConfigMap()
	if !ok || cm.Data["mesh"] == "" {
		return false, nil
	}
	var root *yaml.Node
	var err error
	if o.Root() != nil {
		root, err = o.Embedded(path)
	}
	if err != nil {
		pos := o.ValuePos(path)
		line, text := ErrorLine(err)
		if line > 0 {
			pos.Line, pos.Column = line, 1
		}
		return false, []finding.Finding{finding.Newf(finding.Embedded, o.Object(), path, pos, "%s is not valid YAML: %s", path, text)}
	}
	if root == nil {
		return false, nil
	}
	w := &walker{object: o.Object(), pos: o.position, root: messageShape(m.ProtoReflect().Descriptor(), true)}
	v, ok := w.value(root, w.root, path+"@")
	tree, isMap := v.(map[string]any)
	if !ok || !isMap {
		return false, w.findings
	}
	data, err := json.Marshal(tree)
	if err == nil {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m)
	}
	if err != nil {
		w.report(finding.Embedded, path, o.Find(path).Node(), "", "%s does not decode: %v", path, fmt.Errorf("%s", protoError(err)))
		return false, w.findings
	}
	return true, w.findings
}
