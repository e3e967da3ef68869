package xds

import (
	"maps"
	"slices"
	"strings"

	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/xdspb/nds"
	"lateen.dev/lateen/internal/xdspb/origin"
)

// Type URLs besides those that snapshot compiles.
const (
	TypeSecret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	TypeNames  = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	TypeOrigin = "type.googleapis.com/lateen.origin.v1.Table"
)

// order is the order of first requests: clusters and endpoints before what
// refers to them.
func order() []string {
	return []string{
		snapshot.TypeCluster, snapshot.TypeEndpoint, snapshot.TypeListener, snapshot.TypeRoute,
		TypeSecret, TypeNames, TypeOrigin,
	}
}

// wildcard says whether everything of a type is asked for.
func wildcard(typ string) bool {
	switch typ {
	case snapshot.TypeEndpoint, snapshot.TypeRoute, TypeSecret:
		return false
	}
	return true
}

// ShortName returns a type's customary abbreviation (CDS, LDS …).
func ShortName(typ string) string {
	switch typ {
	case snapshot.TypeCluster:
		return "CDS"
	case snapshot.TypeEndpoint:
		return "EDS"
	case snapshot.TypeListener:
		return "LDS"
	case snapshot.TypeRoute:
		return "RDS"
	case TypeSecret:
		return "SDS"
	case TypeNames:
		return "NDS"
	case TypeOrigin:
		return "origins"
	}
	return typ
}

// table is the cache of one type.
type table struct {
	messages map[string]proto.Message // *anypb.Any, as snapshot.Resources wants
	versions map[string]string
}

// cache is what has been accepted, by type.
type cache map[string]*table

func (c cache) table(typ string) *table {
	t := c[typ]
	if t == nil {
		t = &table{messages: map[string]proto.Message{}, versions: map[string]string{}}
		c[typ] = t
	}
	return t
}

// resources is the view that snapshot.Compile takes. It shares the maps.
func (c cache) resources() snapshot.Resources {
	return snapshot.Resources{
		Listeners: c.table(snapshot.TypeListener).messages, Clusters: c.table(snapshot.TypeCluster).messages,
		Endpoints: c.table(snapshot.TypeEndpoint).messages, Routes: c.table(snapshot.TypeRoute).messages,
	}
}

// undo remembers what a response replaced.
type undo struct {
	message proto.Message
	version string
}

// apply takes a response in and returns how to take single names back.
func (t *table) apply(r *discoverypb.DeltaDiscoveryResponse) map[string]undo {
	before := map[string]undo{}
	note := func(name string) {
		if _, ok := before[name]; !ok {
			before[name] = undo{message: t.messages[name], version: t.versions[name]}
		}
	}
	for _, res := range r.GetResources() {
		if res.GetResource() == nil {
			continue // a heartbeat
		}
		note(res.GetName())
		if old, ok := t.messages[res.GetName()].(*anypb.Any); ok && same(old, res.GetResource()) {
			t.versions[res.GetName()] = res.GetVersion() // keep the pointer: nothing changed
			continue
		}
		t.messages[res.GetName()], t.versions[res.GetName()] = res.GetResource(), res.GetVersion()
	}
	for _, name := range r.GetRemovedResources() {
		note(name)
		delete(t.messages, name)
		delete(t.versions, name)
		if r.GetTypeUrl() == snapshot.TypeEndpoint {
			// "There is no such thing" is an answer: the cluster has no endpoints
			// and must not be waited for.
			t.messages[name] = noEndpoints(name)
		}
	}
	return before
}

func same(a, b *anypb.Any) bool {
	return a.GetTypeUrl() == b.GetTypeUrl() && string(a.GetValue()) == string(b.GetValue())
}

// revert takes one name back.
func (t *table) revert(name string, u undo) {
	if u.message == nil {
		delete(t.messages, name)
		delete(t.versions, name)
		return
	}
	t.messages[name], t.versions[name] = u.message, u.version
}

// decodeNames reads the name table; a table of several resources is joined.
func decodeNames(t *table) (*nds.NameTable, []snapshot.Rejected) {
	out := &nds.NameTable{Table: map[string]*nds.NameTable_NameInfo{}}
	var rejected []snapshot.Rejected
	for _, name := range slices.Sorted(maps.Keys(t.messages)) {
		m := &nds.NameTable{}
		if err := unpack(t.messages[name], m); err != nil {
			rejected = append(rejected, snapshot.Rejected{Type: TypeNames, Name: name, Reason: err.Error()})
			continue
		}
		maps.Copy(out.Table, m.GetTable())
	}
	return out, rejected
}

// decodeOrigins reads the origin table.
func decodeOrigins(t *table) (*origin.Table, []snapshot.Rejected) {
	out := &origin.Table{Places: map[string]*origin.Place{}}
	var rejected []snapshot.Rejected
	for _, name := range slices.Sorted(maps.Keys(t.messages)) {
		m := &origin.Table{}
		if err := unpack(t.messages[name], m); err != nil {
			rejected = append(rejected, snapshot.Rejected{Type: TypeOrigin, Name: name, Reason: err.Error()})
			continue
		}
		maps.Copy(out.Places, m.GetPlaces())
	}
	return out, rejected
}

// Secret is a decoded SDS secret.
type Secret struct{ CertPEM, KeyPEM, RootsPEM []byte }

func decodeSecret(m proto.Message) (*Secret, error) {
	var s tlspb.Secret
	if err := unpack(m, &s); err != nil {
		return nil, err
	}
	inline := func(d interface {
		GetInlineString() string
		GetInlineBytes() []byte
	},
	) []byte {
		return append([]byte(d.GetInlineString()), d.GetInlineBytes()...)
	}
	return &Secret{
		CertPEM:  inline(s.GetTlsCertificate().GetCertificateChain()),
		KeyPEM:   inline(s.GetTlsCertificate().GetPrivateKey()),
		RootsPEM: inline(s.GetValidationContext().GetTrustedCa()),
	}, nil
}

// reasons renders refusals for error_detail, bounded.
func reasons(list []snapshot.Rejected) string {
	const most = 4 << 10
	var b strings.Builder
	for i, r := range list {
		if i > 0 {
			b.WriteString("; ")
		}
		if b.Len()+len(r.Name)+len(r.Reason) > most {
			b.WriteString("and more")
			break
		}
		b.WriteString(r.String())
	}
	return b.String()
}
