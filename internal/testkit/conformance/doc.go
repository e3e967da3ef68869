// Package conformance lets programs that others wrote judge lateen-proxy and the
// control plane: go-control-plane's server drives the proxy over ADS, h2spec reads
// its HTTP/2, gRPC's interop programs call through it, slowhttptest and testssl.sh
// attack its ports. It holds tests only.
//
// Each judge runs the real programs on loopback, bounded in time. A judge that is
// not on this machine is skipped, and in CI that is a failure.
package conformance
