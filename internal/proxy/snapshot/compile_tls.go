package snapshot

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawpb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

const typeRawBuffer = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"

// commonTLS is what both directions of TLS share.
type commonTLS struct {
	certificates []string
	validation   *Validation
	alpn         []string
	min, max     uint16
	ciphers      []uint16
}

func tlsCommon(m *tlspb.CommonTlsContext) (c commonTLS, err error) {
	if m == nil {
		return c, nil
	}
	if err := only(m, `tls_params tls_certificate_sds_secret_configs validation_context
		validation_context_sds_secret_config combined_validation_context alpn_protocols`); err != nil {
		return c, err
	}
	c.alpn = m.GetAlpnProtocols()
	for _, s := range m.GetTlsCertificateSdsSecretConfigs() {
		if s.GetName() == "" {
			return c, fmt.Errorf("tls_certificate_sds_secret_configs: name is empty")
		}
		c.certificates = append(c.certificates, s.GetName())
	}
	switch v := m.GetValidationContextType().(type) {
	case *tlspb.CommonTlsContext_ValidationContext:
		c.validation, err = validation(v.ValidationContext)
	case *tlspb.CommonTlsContext_ValidationContextSdsSecretConfig:
		c.validation, err = withRoots(&Validation{}, v.ValidationContextSdsSecretConfig)
	case *tlspb.CommonTlsContext_CombinedValidationContext:
		if err = only(v.CombinedValidationContext, "default_validation_context validation_context_sds_secret_config"); err == nil {
			c.validation, err = validation(v.CombinedValidationContext.GetDefaultValidationContext())
		}
		if err == nil {
			c.validation, err = withRoots(c.validation, v.CombinedValidationContext.GetValidationContextSdsSecretConfig())
		}
	}
	return c, firstError(err, tlsParams(&c, m.GetTlsParams()))
}

func withRoots(v *Validation, s *tlspb.SdsSecretConfig) (*Validation, error) {
	if s.GetName() == "" {
		return nil, fmt.Errorf("validation_context_sds_secret_config: name is empty")
	}
	if len(v.RootsPEM) > 0 {
		return nil, fmt.Errorf("both trusted_ca and a validation secret are set")
	}
	v.RootSecret = s.GetName()
	return v, nil
}

//nolint:staticcheck // match_subject_alt_names is what Istio sends
func validation(m *tlspb.CertificateValidationContext) (*Validation, error) {
	v := &Validation{}
	if m == nil {
		return v, nil
	}
	if err := only(m, "trusted_ca match_subject_alt_names match_typed_subject_alt_names trust_chain_verification"); err != nil {
		return nil, err
	}
	if m.GetTrustChainVerification() != tlspb.CertificateValidationContext_VERIFY_TRUST_CHAIN {
		return nil, fmt.Errorf("trust_chain_verification %v is not supported", m.GetTrustChainVerification())
	}
	if ca := m.GetTrustedCa(); ca != nil {
		if err := only(ca, "inline_bytes inline_string filename"); err != nil {
			return nil, at(err, "trusted_ca")
		}
		if ca.GetFilename() != "" {
			v.RootSecret = "file-root:" + ca.GetFilename()
		} else {
			v.RootsPEM = append([]byte(ca.GetInlineString()), ca.GetInlineBytes()...)
			if !x509.NewCertPool().AppendCertsFromPEM(v.RootsPEM) {
				return nil, fmt.Errorf("trusted_ca holds no certificate")
			}
		}
	}
	list := m.GetMatchSubjectAltNames()
	for _, t := range m.GetMatchTypedSubjectAltNames() {
		if t.GetSanType() != tlspb.SubjectAltNameMatcher_URI && t.GetSanType() != tlspb.SubjectAltNameMatcher_DNS {
			return nil, fmt.Errorf("match_typed_subject_alt_names: type %v is not supported", t.GetSanType())
		}
		list = append(list[:len(list):len(list)], t.GetMatcher())
	}
	var err error
	v.SANs, err = stringMatchers(list)
	return v, at(err, "match_subject_alt_names")
}

func tlsParams(c *commonTLS, p *tlspb.TlsParameters) error {
	if p == nil {
		return nil
	}
	// ecdh_curves and signature_algorithms: Go's own lists hold safe ones only.
	if err := only(p, `tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites ecdh_curves
		signature_algorithms`); err != nil {
		return at(err, "tls_params")
	}
	var err error
	if c.min, err = tlsVersion(p.GetTlsMinimumProtocolVersion()); err != nil {
		return at(err, "tls_params.tls_minimum_protocol_version")
	}
	if c.max, err = tlsVersion(p.GetTlsMaximumProtocolVersion()); err != nil {
		return at(err, "tls_params.tls_maximum_protocol_version")
	}
	for _, name := range p.GetCipherSuites() {
		// Names without a match are suites that Go does not offer (static RSA):
		// leaving them out is stricter than what was asked.
		if id, ok := cipherSuite(name); ok {
			c.ciphers = append(c.ciphers, id)
		}
	}
	if len(p.GetCipherSuites()) > 0 && len(c.ciphers) == 0 {
		return fmt.Errorf("tls_params.cipher_suites: none of them is supported")
	}
	return nil
}

// tlsVersion converts a protocol version; below TLS 1.2 is refused.
func tlsVersion(v tlspb.TlsParameters_TlsProtocol) (uint16, error) {
	switch v {
	case tlspb.TlsParameters_TLS_AUTO:
		return 0, nil
	case tlspb.TlsParameters_TLSv1_2:
		return tls.VersionTLS12, nil
	case tlspb.TlsParameters_TLSv1_3:
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("%v is not supported", v)
}

// cipherSuite converts a TLS 1.2 suite from OpenSSL's spelling.
func cipherSuite(name string) (uint16, bool) {
	switch name {
	case "ECDHE-ECDSA-AES128-GCM-SHA256":
		return tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true
	case "ECDHE-ECDSA-AES256-GCM-SHA384":
		return tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, true
	case "ECDHE-RSA-AES128-GCM-SHA256":
		return tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, true
	case "ECDHE-RSA-AES256-GCM-SHA384":
		return tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, true
	case "ECDHE-ECDSA-CHACHA20-POLY1305":
		return tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, true
	case "ECDHE-RSA-CHACHA20-POLY1305":
		return tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, true
	case "ECDHE-ECDSA-AES128-SHA":
		return tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, true
	case "ECDHE-ECDSA-AES256-SHA":
		return tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, true
	case "ECDHE-RSA-AES128-SHA":
		return tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, true
	case "ECDHE-RSA-AES256-SHA":
		return tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, true
	}
	return 0, false
}

// downstreamTLS compiles how a chain terminates TLS; nil without a transport
// socket. Fields left out: ocsp_staple_policy (no staples), session_timeout,
// prefer_client_ciphers and full_scan_certs_on_sni_mismatch (Go's choice).
func downstreamTLS(t *corepb.TransportSocket) (*DownstreamTLS, error) {
	if t == nil || string(t.GetTypedConfig().MessageName()) == typeRawBuffer {
		return nil, nil
	}
	var m tlspb.DownstreamTlsContext
	if err := decode(t.GetTypedConfig(), &m); err != nil {
		return nil, err
	}
	if err := only(&m, `common_tls_context require_client_certificate disable_stateless_session_resumption
		disable_stateful_session_resumption session_timeout ocsp_staple_policy prefer_client_ciphers
		full_scan_certs_on_sni_mismatch`); err != nil {
		return nil, err
	}
	c, err := tlsCommon(m.GetCommonTlsContext())
	if err != nil {
		return nil, at(err, "common_tls_context")
	}
	d := &DownstreamTLS{
		Certificates: c.certificates, Validation: c.validation,
		RequireClientCert: m.GetRequireClientCertificate().GetValue(),
		ALPN:              c.alpn, MinVersion: c.min, MaxVersion: c.max, CipherSuites: c.ciphers,
	}
	if len(d.Certificates) == 0 {
		return nil, fmt.Errorf("common_tls_context: no certificate")
	}
	if d.RequireClientCert && !d.Validation.hasRoots() {
		return nil, fmt.Errorf("require_client_certificate without a trusted CA")
	}
	if !d.Validation.hasRoots() {
		d.Validation = nil
	}
	// A resumed session would skip verifying the peer, so tickets are only for
	// chains that do not look at client certificates.
	d.SessionTickets = d.Validation == nil && !m.GetDisableStatelessSessionResumption()
	return d, nil
}

func (v *Validation) hasRoots() bool {
	return v != nil && (v.RootSecret != "" || len(v.RootsPEM) > 0)
}

// upstreamTLS compiles how a cluster originates TLS; nil for plaintext.
func upstreamTLS(t *corepb.TransportSocket) (*UpstreamTLS, error) {
	if t == nil {
		return nil, nil
	}
	if string(t.GetTypedConfig().MessageName()) == typeRawBuffer {
		var m rawpb.RawBuffer
		return nil, decode(t.GetTypedConfig(), &m)
	}
	var m tlspb.UpstreamTlsContext
	if err := decode(t.GetTypedConfig(), &m); err != nil {
		return nil, err
	}
	// max_session_keys: no client sessions are kept. enforce_rsa_key_usage: Go does.
	if err := only(&m, "common_tls_context sni max_session_keys enforce_rsa_key_usage auto_host_sni auto_sni_san_validation"); err != nil {
		return nil, err
	}
	c, err := tlsCommon(m.GetCommonTlsContext())
	if err != nil {
		return nil, at(err, "common_tls_context")
	}
	u := &UpstreamTLS{
		Validation: c.validation, SNI: m.GetSni(), ALPN: c.alpn, MinVersion: c.min, MaxVersion: c.max,
		AutoSNI: m.GetAutoHostSni(), AutoSANValidation: m.GetAutoSniSanValidation(),
	}
	switch len(c.certificates) {
	case 0:
	case 1:
		u.Certificate = c.certificates[0]
	default:
		return nil, fmt.Errorf("common_tls_context: more than one client certificate")
	}
	if u.Validation != nil && !u.Validation.hasRoots() {
		return nil, fmt.Errorf("common_tls_context: names are to be matched without a trusted CA")
	}
	u.Mesh = u.Certificate == "default" && u.Validation != nil && u.Validation.RootSecret == "ROOTCA"
	return u, nil
}
