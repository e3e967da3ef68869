// Package orders holds the demo: three services, a collector, a gateway and a
// load generator, described by ordinary Kubernetes and Istio manifests.
package orders
