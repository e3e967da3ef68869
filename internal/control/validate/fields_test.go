package validate

import (
	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

func collectFields(md protoreflect.MessageDescriptor, known, seen map[string]bool) {
	if seen[string(md.FullName())] {
		return
	}
	seen[string(md.FullName())] = true
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		known[fieldName(fd)] = true
		if fd.IsMap() {
			fd = fd.MapValue()
		}
		if fd.Message() != nil {
			collectFields(fd.Message(), known, seen)
		}
	}
}

func collectMeshConfig(known map[string]bool) {
	collectFields((&meshconfig.MeshConfig{}).ProtoReflect().Descriptor(), known, map[string]bool{})
}
