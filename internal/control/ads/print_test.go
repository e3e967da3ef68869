package ads

import (
	"strings"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestPrint_hidesPrivateKeys(t *testing.T) {
	inline := func(s string) *corepb.DataSource {
		return &corepb.DataSource{Specifier: &corepb.DataSource_InlineString{InlineString: s}}
	}
	a, err := anypb.New(&tlspb.Secret{Name: "kubernetes://cred", Type: &tlspb.Secret_TlsCertificate{
		TlsCertificate: &tlspb.TlsCertificate{CertificateChain: inline("public part"), PrivateKey: inline("private part"), Password: inline("private part")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := Print(a)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(out); !strings.Contains(s, "public part") || strings.Contains(s, "private part") {
		t.Errorf("printed %s", s)
	}
	g, err := anypb.New(&tlspb.Secret{Name: "g", Type: &tlspb.Secret_GenericSecret{GenericSecret: &tlspb.GenericSecret{Secret: inline("private part")}}})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := Print(g); err != nil || strings.Contains(string(out), "private part") {
		t.Errorf("printed %s, %v", out, err)
	}
}
