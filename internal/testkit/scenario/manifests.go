package scenario

import (
	"fmt"
	"strings"
)

// EchoImage is the image of the test application in generated manifests.
const EchoImage = "lateen.dev/test/echo"

// Manifests returns the Kubernetes manifests that the workloads section stands
// for: namespaces, service accounts, services and deployments.
func (s *Scenario) Manifests() string {
	var b strings.Builder
	b.WriteString(s.Services(func(string, string) string { return "" }))
	for _, w := range s.Workloads {
		b.WriteString(w.deployment())
	}
	return b.String()
}

// Services returns the manifests without deployments. clusterIP chooses the
// address of a service; "" leaves it out.
func (s *Scenario) Services(clusterIP func(name, namespace string) string) string {
	var b strings.Builder
	seenNamespace := map[string]bool{"default": true}
	seenService := map[string]bool{}
	for _, w := range s.Workloads {
		if !seenNamespace[w.Namespace] {
			seenNamespace[w.Namespace] = true
			fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: %s\n  labels:\n    istio-injection: enabled\n", w.Namespace)
		}
		if key := w.Namespace + "/" + w.Name; !seenService[key] {
			seenService[key] = true
			fmt.Fprintf(&b, serviceManifest, w.Name, w.Namespace, w.Name, w.Namespace, w.Name, w.PortName, w.Port)
			if ip := clusterIP(w.Name, w.Namespace); ip != "" {
				fmt.Fprintf(&b, "  clusterIP: %[1]s\n  clusterIPs: [%[1]q]\n", ip)
			}
		}
	}
	return b.String()
}

const serviceManifest = `---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: %s
  namespace: %s
---
apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: %s
spec:
  selector: {app: %s}
  ports: [{name: %s, port: %d}]
`

func (w Workload) deployment() string {
	inject := "true"
	if !w.Sidecar {
		inject = "false"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: %[1]s
  namespace: %[2]s
spec:
  replicas: %[3]d
  selector:
    matchLabels:
      app: %[4]s
      version: %[5]s
  template:
    metadata:
      labels:
        app: %[4]s
        version: %[5]s
        sidecar.istio.io/inject: "%[6]s"
    spec:
      serviceAccountName: %[4]s
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: %[7]s
        ports:
        - name: %[8]s
          containerPort: %[9]d
        env:
        - name: ECHO_NAME
          value: %[1]s
        - name: ECHO_PORT
          value: "%[9]d"
        - name: ECHO_BEHAVIOUR
          value: "%[10]s"
        readinessProbe:
          tcpSocket:
            port: %[9]d
          periodSeconds: 1
`, w.Deployment(), w.Namespace, w.Replicas, w.Name, w.Version, inject, EchoImage, w.PortName, w.Port, w.Behaviour)
	return b.String()
}

// String returns the behaviour in the form ParseBehaviour reads.
func (b Behaviour) String() string {
	return fmt.Sprintf("status=%d delay=%s reset=%t first=%d", b.Status, b.Delay, b.Reset, b.First)
}

// ParseBehaviour reads what Behaviour.String wrote.
func ParseBehaviour(text string) (b Behaviour, err error) {
	b.Status = 200
	if text == "" {
		return b, nil
	}
	var delay string
	if _, err := fmt.Sscanf(text, "status=%d delay=%s reset=%t first=%d", &b.Status, &delay, &b.Reset, &b.First); err != nil {
		return b, fmt.Errorf("read behaviour %q: %w", text, err)
	}
	b.Delay, err = parseDelay(delay)
	return b, err
}
