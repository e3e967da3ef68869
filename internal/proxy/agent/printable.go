package agent

import (
	typedpb "github.com/cncf/xds/go/udpa/type/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxDepth bounds how deep messages are unpacked for a dump.
const maxDepth = 16

// printable returns a copy of a resource that can be written as JSON: an Any
// whose type this program does not know is replaced by a TypedStruct that names
// it, since there is no JSON form of unknown bytes.
func printable(m proto.Message) proto.Message {
	if a, ok := m.(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			return &typedpb.TypedStruct{TypeUrl: a.GetTypeUrl()}
		}
		m = inner
	} else {
		m = proto.Clone(m)
	}
	unpackAnys(m.ProtoReflect(), 0)
	return m
}

// unpackAnys replaces what cannot be printed, in place.
func unpackAnys(m protoreflect.Message, depth int) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil || depth > maxDepth {
			inner = &typedpb.TypedStruct{TypeUrl: a.GetTypeUrl()}
		} else {
			unpackAnys(inner.ProtoReflect(), depth+1)
		}
		if packed, err := anypb.New(inner); err == nil {
			a.TypeUrl, a.Value = packed.GetTypeUrl(), packed.GetValue()
		}
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, e protoreflect.Value) bool {
				unpackAnys(e.Message(), depth+1)
				return true
			})
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				unpackAnys(v.List().Get(i).Message(), depth+1)
			}
		case !f.IsMap() && !f.IsList() && f.Message() != nil:
			unpackAnys(v.Message(), depth+1)
		}
		return true
	})
}
