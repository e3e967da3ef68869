// Package validate judges one object at a time: what the object's own schema
// and Istio's rules demand of it, whatever else is in the mesh. It comes after
// decoding and before the mesh model; rules about several objects are in
// package analyze.
//
// An Error refuses the object alone. Everything here is pure.
package validate

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/api/networking/v1"
	securityv1 "istio.io/api/security/v1"
	telemetryv1 "istio.io/api/telemetry/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

//go:generate go run crdgen.go

// Object returns everything that is wrong with o by itself, beginning with what
// decoding found. An object with an Error among them must not be put in force.
func Object(o *resource.Object) []finding.Finding {
	c := &checker{o: o}
	c.findings = append(c.findings, o.Findings()...)
	c.constraints()
	switch s := o.Spec.(type) {
	case *networkingv1.VirtualService:
		c.virtualService(s)
	case *networkingv1.DestinationRule:
		c.destinationRule(s)
	case *networkingv1.Gateway:
		c.gateway(s)
	case *networkingv1.ServiceEntry:
		c.serviceEntry(s)
	case *networkingv1.Sidecar:
		c.sidecar(s)
	case *securityv1.AuthorizationPolicy:
		c.authorizationPolicy(s)
	case *securityv1.PeerAuthentication:
		c.peerAuthentication(s)
	case *securityv1.RequestAuthentication:
		c.requestAuthentication(s)
	case *telemetryv1.Telemetry:
		c.telemetry(s)
	case *corev1.Service:
		c.kubeService(s)
	case *corev1.Pod:
		c.podSpec(&s.Spec, "spec")
	case *appsv1.Deployment:
		c.deployment(s)
	case *corev1.ConfigMap:
		c.configMap(s)
	}
	if m, ok := o.Spec.(proto.Message); ok {
		c.deprecated(m)
	}
	c.notApplied()
	return c.findings
}

// Refused reports whether findings refuse the object they are about.
func Refused(findings []finding.Finding) bool {
	worst, any := finding.Worst(findings)
	return any && worst == finding.Error
}

// checker gathers findings about one object.
type checker struct {
	o        *resource.Object
	findings []finding.Finding
}

// add reports a finding at the field's key, with an optional hint.
func (c *checker) add(code, path, hint, format string, args ...any) {
	f := finding.New(code, c.o.Object(), path, c.o.Pos(path), fmt.Sprintf(format, args...))
	f.Hint = hint
	c.findings = append(c.findings, f)
}

// addValue is add with the place of the field's value.
func (c *checker) addValue(code, path, hint, format string, args ...any) {
	f := finding.New(code, c.o.Object(), path, c.o.ValuePos(path), fmt.Sprintf(format, args...))
	f.Hint = hint
	c.findings = append(c.findings, f)
}

func at(path string, format string, args ...any) string {
	return path + fmt.Sprintf(format, args...)
}
