package translate

import (
	"bytes"
	"strings"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingpb "istio.io/api/networking/v1alpha3"
)

// gatewayTLS is the server side of TLS that a Gateway configures. Credentials
// come over ADS from Secrets of the proxy's own namespace; files and the mesh's
// own identity from the proxy's agent.
func (b *builder) gatewayTLS(s server) *corepb.TransportSocket {
	t := s.spec.GetTls()
	alpn := []string{"h2", "http/1.1"}
	if !b.n.http2() {
		alpn = alpn[1:]
	}
	if !s.http() {
		alpn = nil
	}
	if t.GetMode() == networkingpb.ServerTLSSettings_ISTIO_MUTUAL {
		return b.serverTLS(s.http())
	}
	common := &tlspb.CommonTlsContext{AlpnProtocols: alpn, TlsParams: gatewayParams(t)}
	mutual := t.GetMode() == networkingpb.ServerTLSSettings_MUTUAL
	asks := mutual || t.GetMode() == networkingpb.ServerTLSSettings_OPTIONAL_MUTUAL
	names := t.GetCredentialNames()
	if t.GetCredentialName() != "" {
		names = []string{t.GetCredentialName()}
	}
	roots := ""
	switch {
	case len(names) > 0:
		for _, n := range names {
			common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs, gatewaySecret(n))
			b.addSecret(s, n, false)
		}
		roots = t.GetCaCertCredentialName()
		if roots == "" {
			roots = names[0] + "-cacert"
		}
	default:
		common.TlsCertificateSdsSecretConfigs = []*tlspb.SdsSecretConfig{
			fileSecret("file-cert:" + t.GetServerCertificate() + "~" + t.GetPrivateKey()),
		}
		for _, c := range t.GetTlsCertificates() {
			common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs,
				fileSecret("file-cert:"+c.GetServerCertificate()+"~"+c.GetPrivateKey()))
		}
	}
	if asks {
		config := fileSecret("file-root:" + t.GetCaCertificates())
		if roots != "" {
			config = gatewaySecret(roots)
			b.addSecret(s, roots, true)
		}
		v := validation(exactSANs(t.GetSubjectAltNames()), config)
		d := v.CombinedValidationContext.GetDefaultValidationContext()
		d.VerifyCertificateHash, d.VerifyCertificateSpki = t.GetVerifyCertificateHash(), t.GetVerifyCertificateSpki()
		common.ValidationContextType = v
	}
	return downstreamSocket(&tlspb.DownstreamTlsContext{
		CommonTlsContext: common, RequireClientCertificate: wrapperspb.Bool(mutual),
	})
}

func gatewayParams(t *networkingpb.ServerTLSSettings) *tlspb.TlsParameters {
	out := &tlspb.TlsParameters{
		CipherSuites:              t.GetCipherSuites(),
		TlsMinimumProtocolVersion: tlsVersion(t.GetMinProtocolVersion()),
		TlsMaximumProtocolVersion: tlsVersion(t.GetMaxProtocolVersion()),
	}
	if len(out.GetCipherSuites()) == 0 && out.GetTlsMinimumProtocolVersion() == 0 && out.GetTlsMaximumProtocolVersion() == 0 {
		return nil
	}
	return out
}

func tlsVersion(v networkingpb.ServerTLSSettings_TLSProtocol) tlspb.TlsParameters_TlsProtocol {
	switch v {
	case networkingpb.ServerTLSSettings_TLSV1_0:
		return tlspb.TlsParameters_TLSv1_0
	case networkingpb.ServerTLSSettings_TLSV1_1:
		return tlspb.TlsParameters_TLSv1_1
	case networkingpb.ServerTLSSettings_TLSV1_2:
		return tlspb.TlsParameters_TLSv1_2
	case networkingpb.ServerTLSSettings_TLSV1_3:
		return tlspb.TlsParameters_TLSv1_3
	}
	return tlspb.TlsParameters_TLS_AUTO
}

// addSecret sends a Secret to a gateway: a certificate with its key, or the
// roots for client certificates. Only Secrets of the gateway's own namespace
// are ever read; one that is missing or incomplete is not sent, and the
// listener that wants it stays closed.
func (b *builder) addSecret(s server, name string, roots bool) {
	name = strings.TrimPrefix(name, "kubernetes://")
	if !b.n.router() || strings.Contains(name, "/") || !b.entitled(s) {
		return
	}
	out := &tlspb.Secret{Name: "kubernetes://" + name}
	if roots {
		ca := b.secretValue(name, "cacert", "ca.crt")
		if ca == nil {
			ca = b.secretValue(strings.TrimSuffix(name, "-cacert"), "cacert", "ca.crt")
		}
		if ca == nil {
			return
		}
		out.Type = &tlspb.Secret_ValidationContext{ValidationContext: &tlspb.CertificateValidationContext{TrustedCa: inlineBytes(ca)}}
	} else {
		cert, key := b.secretValue(name, "tls.crt", "cert"), b.secretValue(name, "tls.key", "key")
		if cert == nil || key == nil {
			return
		}
		out.Type = &tlspb.Secret_TlsCertificate{TlsCertificate: &tlspb.TlsCertificate{
			CertificateChain: inlineBytes(cert), PrivateKey: inlineBytes(key),
		}}
	}
	b.add(SecretType, out.GetName(), out)
}

// entitled reports whether the node may have the credentials of a server. What
// a node says of itself grants nothing: its pod must be known, and the Gateway
// must select that pod by labels.
func (b *builder) entitled(s server) bool {
	w, ok := b.m.Workload(b.n.Namespace, b.n.PodName)
	selector := s.gateway.Spec.GetSelector()
	return ok && len(selector) > 0 && labelsMatch(selector, w.Labels)
}

func inlineBytes(v []byte) *corepb.DataSource {
	return &corepb.DataSource{Specifier: &corepb.DataSource_InlineBytes{InlineBytes: v}}
}

// secretValue returns the first non-empty value of a Secret of the node's
// namespace among keys.
func (b *builder) secretValue(name string, keys ...string) []byte {
	o, ok := b.m.Secret(b.n.Namespace, name)
	if !ok {
		return nil
	}
	s, ok := o.Secret()
	if !ok {
		return nil
	}
	for _, k := range keys {
		if v := s.Data[k]; len(bytes.TrimSpace(v)) > 0 {
			return v
		}
	}
	return nil
}
