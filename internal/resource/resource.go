// Package resource holds configuration objects after decoding and before
// anyone interprets them: Kubernetes and Istio objects with the position of
// every field. It is the only common language of sources, validation, the mesh
// model and the local cluster.
//
// An *Object and everything it points to never changes after it was made; a
// new version of an object is a new *Object.
package resource

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lateen.dev/lateen/internal/finding"
)

// Kind is the kind of an object, unique over all API groups Lateen reads:
// "VirtualService", "Service", "ConfigMap". The registry of kinds is in kinds.go.
type Kind string

// Key identifies an object. Namespace is empty for cluster-scoped kinds and
// "default" where a manifest of a namespaced kind names none.
type Key struct {
	Kind      Kind
	Namespace string
	Name      string
}

// Object returns the key in the form findings use.
func (k Key) Object() finding.Object {
	return finding.Object{Kind: string(k.Kind), Namespace: k.Namespace, Name: k.Name}
}

// String returns Kind/name.namespace.
func (k Key) String() string { return k.Object().String() }

// Object is one decoded object.
type Object struct {
	Key
	// APIVersion is as written, for example "networking.istio.io/v1beta1".
	APIVersion  string
	Labels      map[string]string
	Annotations map[string]string
	// Created is metadata.creationTimestamp where known. Files have none; ties
	// are then broken by namespace and name, as Istio does.
	Created time.Time
	// Spec is the decoded body: the istio.io/api spec message for Istio kinds
	// (*networkingv1.VirtualService …), the whole k8s.io/api object for
	// Kubernetes kinds (*corev1.Service …).
	Spec any
	// Source tells where the object came from: a file path, "apply", or
	// "local" for what the supervisor wrote.
	Source string
	// fields maps the object's fields to places; see position.go.
	fields positions
	// meta is the full metadata of Istio kinds, whose Spec does not hold it.
	meta *metav1.ObjectMeta
	// problems is what decoding found wrong inside the object.
	problems []finding.Finding
}
