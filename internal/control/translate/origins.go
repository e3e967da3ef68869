package translate

import (
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"lateen.dev/lateen/internal/control/mesh"
	originpb "lateen.dev/lateen/internal/xdspb/origin"
)

// withOrigin adds the stable id of a place to metadata, for nodes that can
// tell it on; other nodes get metadata as it is.
func (b *builder) withOrigin(md *corepb.Metadata, at mesh.Origin) *corepb.Metadata {
	if at.Object == nil || !b.n.Caps["origins"] {
		return md
	}
	if md == nil {
		md = &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{}}
	}
	b.noteOrigin(at)
	md.FilterMetadata["lateen"] = &structpb.Struct{Fields: map[string]*structpb.Value{
		"origin": structpb.NewStringValue(at.ID()),
	}}
	return md
}

// setOrigin is withOrigin for metadata that exists.
func (b *builder) setOrigin(md *corepb.Metadata, at mesh.Origin) { b.withOrigin(md, at) }

// noteOrigin remembers a place for the table of origins.
func (b *builder) noteOrigin(at mesh.Origin) {
	if at.Object != nil {
		b.origins[at.ID()] = at
	}
}

// addOrigins makes the table that joins origin ids to places. It is the only
// resource that changes when lines move.
func (b *builder) addOrigins() {
	table := &originpb.Table{Places: make(map[string]*originpb.Place, len(b.origins))}
	for id, at := range b.origins {
		pos := at.Object.Pos(at.Path)
		p := &originpb.Place{File: pos.File, Line: uint32(pos.Line), Column: uint32(pos.Column)}
		if p.File == "" {
			p.File = at.Object.Source
		}
		table.Places[id] = p
	}
	b.res[OriginType] = map[string]proto.Message{Origins: table}
}
