package ads

import (
	"bytes"
	"encoding/json"

	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Print returns a resource as protojson, for people and tests. Of a secret only
// its name and certificates are shown.
func Print(a *anypb.Any) (json.RawMessage, error) {
	msg, err := a.UnmarshalNew()
	if err != nil {
		return nil, err
	}
	if s, ok := msg.(*tlspb.Secret); ok {
		msg = redact(s)
	}
	data, err := protojson.Marshal(msg)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer // protojson varies its blanks on purpose
	if err := json.Compact(&out, data); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// redact keeps of a secret what is public.
func redact(s *tlspb.Secret) proto.Message {
	out := &tlspb.Secret{Name: s.GetName()}
	switch t := s.GetType().(type) {
	case *tlspb.Secret_TlsCertificate:
		out.Type = &tlspb.Secret_TlsCertificate{TlsCertificate: &tlspb.TlsCertificate{CertificateChain: t.TlsCertificate.GetCertificateChain()}}
	case *tlspb.Secret_ValidationContext:
		out.Type = t
	}
	return out
}
