// Package spiffe holds the identities of the mesh: SPIFFE ids of the form
// spiffe://<trust domain>/ns/<namespace>/sa/<service account>, and how they are
// read from certificates. It is a leaf that both planes use; the SPIFFE rules
// for trust domains and path segments are go-spiffe's.
//
// An ID is a plain comparable value. Parsing is strict: what does not have
// exactly this form is an error, because an identity that two parties read
// differently is a hole.
package spiffe

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// DefaultTrustDomain is Istio's default.
const DefaultTrustDomain = "cluster.local"

// Namespace and service account of the control plane, as in Istio.
const (
	ControlNamespace      = "istio-system"
	ControlServiceAccount = "istiod"
)

// ID is the identity of a workload.
type ID struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// New returns the ID of a service account, or an error when a part cannot
// stand in a SPIFFE id.
func New(trustDomain, namespace, serviceAccount string) (ID, error) {
	return Parse("spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + serviceAccount)
}

// ControlPlane returns the identity of the control plane of a trust domain.
func ControlPlane(trustDomain string) ID {
	return ID{TrustDomain: trustDomain, Namespace: ControlNamespace, ServiceAccount: ControlServiceAccount}
}

// Parse reads a SPIFFE id in URI form.
func Parse(uri string) (ID, error) {
	parsed, err := spiffeid.FromString(uri)
	if err != nil {
		return ID{}, fmt.Errorf("read identity %q: %w", uri, err)
	}
	seg := strings.Split(parsed.Path(), "/")
	if len(seg) != 5 || seg[1] != "ns" || seg[3] != "sa" {
		return ID{}, fmt.Errorf("read identity %q: want spiffe://<trust domain>/ns/<namespace>/sa/<service account>", uri)
	}
	return ID{TrustDomain: parsed.TrustDomain().Name(), Namespace: seg[2], ServiceAccount: seg[4]}, nil
}

// ParseTrustDomain checks the name of a trust domain. Only the bare name is
// accepted, not a URI.
func ParseTrustDomain(name string) (string, error) {
	if strings.ContainsAny(name, ":/") {
		return "", fmt.Errorf("read trust domain %q: want a name such as %q", name, DefaultTrustDomain)
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return "", fmt.Errorf("read trust domain %q: %w", name, err)
	}
	return td.Name(), nil
}

// String returns the URI form.
func (id ID) String() string { return "spiffe://" + id.Principal() }

// Principal returns the form that AuthorizationPolicy uses: the URI without
// its scheme.
func (id ID) Principal() string {
	return id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// IsZero reports whether id names nobody.
func (id ID) IsZero() bool { return id == ID{} }

var errSAN = errors.New("want exactly one URI name")

// FromCertificate returns the identity in an X.509-SVID. The SPIFFE X.509-SVID
// specification (§2) demands exactly one URI name; a certificate authority is
// nobody's SVID (§4.1).
func FromCertificate(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, fmt.Errorf("read identity of certificate %v: %w, it has %d", cert.SerialNumber, errSAN, len(cert.URIs))
	}
	if cert.IsCA {
		return ID{}, fmt.Errorf("read identity of certificate %v: it is a certificate authority", cert.SerialNumber)
	}
	return Parse(cert.URIs[0].String())
}
