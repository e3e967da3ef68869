// Package istioca is the wire form of Istio's certificate service
// (istio.v1.auth.IstioCertificateService): the proxy's agent calls it, the
// control plane's authority serves it, and either can face Istio's own peer.
//
// The messages equal those of istio.io/api/security/v1alpha1. They are
// generated here so that the proxy need not link istio.io/api; the two packages
// register the same names and must never be linked into one program. They are
// generated from istioca.proto by `make generate`; the service, a single unary
// call, is written by hand in service.go.
package istioca
