// Package nds is the wire form of Istio's name discovery service: a table of
// host names that the control plane sends and the proxy's DNS server answers
// from. It is generated from nds.proto by `make generate`.
package nds
