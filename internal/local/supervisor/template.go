package supervisor

import (
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/nft"
	"lateen.dev/lateen/internal/local/pod"
)

// Names that decide about injection, as in Istio.
const (
	injectName      = "sidecar.istio.io/inject"
	injectNamespace = "istio-injection"
	injectTemplates = "inject.istio.io/templates"
	injectStatus    = "sidecar.istio.io/status"
)

// template decides everything about the pods of a template except their name and
// number. The hash changes exactly when they must be replaced.
func (s *Supervisor) template(key api.ObjectKey, t *manifest.PodTemplate, ownerKind, ownerName string) (*pod.Config, string, error) {
	if t.Spec.HostNetwork {
		return nil, "", fmt.Errorf("hostNetwork is not supported on one machine: remove it, or run the program beside lateen")
	}
	if len(t.Spec.Containers) == 0 {
		return nil, "", fmt.Errorf("spec.containers is empty")
	}
	capture, err := nft.ParseCapture(t.Metadata.Annotations)
	if err != nil {
		return nil, "", err
	}
	m := &manifest.Pod{
		TypeMeta: manifest.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		Metadata: manifest.Metadata{
			Namespace: key.Namespace, Labels: maps.Clone(t.Metadata.Labels), Annotations: maps.Clone(t.Metadata.Annotations),
		},
		Spec: t.Spec,
	}
	cfg := &pod.Config{
		Manifest: m, Capture: capture, OwnerKind: ownerKind, OwnerName: ownerName,
		ClusterID: s.o.ClusterID, Programs: map[string]pod.Program{}, Errors: map[string]string{},
	}
	cfg.Mode = s.mode(key.Namespace, m)
	if err := s.programs(cfg); err != nil {
		return nil, "", err
	}
	if cfg.Mode != pod.Bare {
		if m.Metadata.Annotations == nil {
			m.Metadata.Annotations = map[string]string{}
		}
		m.Metadata.Annotations[injectStatus] = `{"containers":["istio-proxy"],"revision":"lateen"}`
	}
	if cfg.Mode == pod.Gateway {
		cfg.Listeners = s.gatewayListeners(key.Namespace, m)
	}
	cfg.Notes = notes(s.objects[key].event.Object, key.Kind, t)
	hash, err := digest(t.Metadata.Labels, t.Metadata.Annotations, t.Spec, cfg.Mode, cfg.Programs, cfg.Errors, cfg.Listeners)
	return cfg, hash, err
}

// mode applies Istio's rules of injection. The namespace "default" counts as
// enabled, so that the quick start needs no label.
func (s *Supervisor) mode(namespace string, m *manifest.Pod) pod.Mode {
	inject := namespace == "default"
	if ns := s.namespaces[namespace]; ns != nil {
		switch {
		case ns.Metadata.Labels[injectNamespace] == "enabled":
			inject = true
		case ns.Metadata.Labels[injectNamespace] == "disabled":
			inject = false
		case ns.Metadata.Labels["istio.io/rev"] != "":
			inject = true
		}
		// Istio: a disabled namespace cannot be overruled by its pods.
		if ns.Metadata.Labels[injectNamespace] == "disabled" {
			return pod.Bare
		}
	}
	if namespace == "kube-system" || namespace == "kube-public" {
		return pod.Bare
	}
	for _, from := range []map[string]string{m.Metadata.Annotations, m.Metadata.Labels} {
		switch from[injectName] { // the label is read last and wins
		case "true":
			inject = true
		case "false":
			inject = false
		}
	}
	switch {
	case !inject:
		return pod.Bare
	case isGateway(m):
		return pod.Gateway
	}
	return pod.Sidecar
}

func isGateway(m *manifest.Pod) bool {
	return slices.Contains(strings.Split(m.Metadata.Annotations[injectTemplates], ","), "gateway")
}

// programs finds the program of each container. A container without one has an
// error of its own; the rest of the pod and all others go on.
func (s *Supervisor) programs(cfg *pod.Config) error {
	for _, list := range [][]manifest.Container{cfg.Manifest.Spec.InitContainers, cfg.Manifest.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if c.Name == pod.ProxyContainer && cfg.Mode != pod.Bare {
				if cfg.Mode == pod.Sidecar {
					return fmt.Errorf("container %s: a sidecar written in the manifest is not supported on one machine; remove it, it is injected", c.Name)
				}
				continue
			}
			if c.Image == "auto" {
				cfg.Errors[c.Name] = `image "auto" is a gateway's proxy, but this pod is not injected: label it sidecar.istio.io/inject: "true" and annotate it inject.istio.io/templates: gateway`
				continue
			}
			prog, err := s.program(c.Image)
			if err != nil {
				cfg.Errors[c.Name] = err.Error()
				continue
			}
			cfg.Programs[c.Name] = prog
		}
	}
	return nil
}

// program maps an image to a program: the command line first, then LocalCluster
// documents, then the images everybody knows.
func (s *Supervisor) program(image string) (pod.Program, error) {
	if p, ok := match(s.o.Images, image); ok {
		return resolve(p, "")
	}
	for _, key := range s.sortedKeys() {
		lc, ok := s.objects[key].value.(*manifest.LocalCluster)
		if !ok {
			continue
		}
		if p, ok := match(lc.Spec.Images, image); ok {
			file, _, _ := strings.Cut(s.objects[key].event.Source, ":")
			return resolve(p, filepath.Dir(file))
		}
	}
	if strings.HasPrefix(strings.TrimPrefix(image, "docker.io/"), "otel/opentelemetry-collector") && s.o.SelfProgram != "" {
		return pod.Program{
			Args: []string{s.o.SelfProgram, "collector"}, DefaultArgs: []string{"--config", "/etc/otelcol/config.yaml"},
			Env: []string{"LATEEN_HUB_ENDPOINT=" + s.o.HubAddress},
		}, nil
	}
	return pod.Program{}, fmt.Errorf("image %q has no program on this machine: map it with --image %s=PROGRAM or a LocalCluster document", image, image)
}

// match finds an image by name, by name without its tag, or by a pattern that
// ends in "*"; the longest pattern wins.
func match(images map[string]manifest.Program, image string) (manifest.Program, bool) {
	if p, ok := images[image]; ok {
		return p, true
	}
	bare := image
	if i := strings.LastIndexByte(bare, '@'); i > 0 {
		bare = bare[:i]
	}
	if i := strings.LastIndexByte(bare, ':'); i > strings.LastIndexByte(bare, '/') {
		bare = bare[:i]
	}
	if p, ok := images[bare]; ok {
		return p, true
	}
	best, found := "", false
	for pattern := range images {
		prefix, ok := strings.CutSuffix(pattern, "*")
		if ok && strings.HasPrefix(image, prefix) && len(pattern) > len(best) {
			best, found = pattern, true
		}
	}
	return images[best], found
}

// resolve makes the program's path absolute.
func resolve(p manifest.Program, dir string) (pod.Program, error) {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return pod.Program{}, fmt.Errorf("the image is mapped to an empty program")
	}
	out := pod.Program{Args: slices.Clone(p.Args), RootFS: p.RootFS}
	if p.RootFS != "" {
		if !filepath.IsAbs(p.RootFS) {
			out.RootFS = filepath.Join(dir, p.RootFS)
		}
		return out, nil // the path is inside
	}
	path := p.Args[0]
	switch {
	case filepath.IsAbs(path):
	case strings.Contains(path, "/"):
		path = filepath.Join(dir, path)
	default:
		if found, err := exec.LookPath(path); err == nil {
			path = found
		} else {
			path = filepath.Join(dir, path)
		}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return pod.Program{}, fmt.Errorf("program %s: %w", path, err)
	}
	out.Args[0] = abs
	return out, nil
}

// notes lists what is written in the manifest and not honoured.
func notes(object json.RawMessage, kind string, t *manifest.PodTemplate) []string {
	if kind == "Deployment" {
		var d struct {
			Spec struct {
				Template json.RawMessage `json:"template"`
			} `json:"spec"`
		}
		if json.Unmarshal(object, &d) == nil {
			object = d.Spec.Template
		}
	}
	var out []string
	if fields := manifest.Unsupported(object); len(fields) > 0 {
		out = append(out, "not honoured on one machine: "+strings.Join(fields, ", "))
	}
	for _, c := range t.Spec.Containers {
		if len(c.Resources.Limits) > 0 && c.Name != pod.ProxyContainer {
			out = append(out, fmt.Sprintf("limits of container %s are not enforced: there is no delegated control group", c.Name))
		}
	}
	return out
}

// allowHostPorts opens the host's own ports that LocalCluster documents list.
func (s *Supervisor) allowHostPorts() {
	var ports []uint16
	for _, o := range s.objects {
		if lc, ok := o.value.(*manifest.LocalCluster); ok {
			ports = append(ports, lc.Spec.HostPorts...)
		}
	}
	slices.Sort(ports)
	ports = slices.Compact(ports)
	if slices.Equal(ports, s.hostPorts) {
		return
	}
	if err := s.o.Host.AllowPorts(ports); err != nil {
		s.o.Log.Warn("open the host's ports for pods", "error", err)
		return
	}
	s.hostPorts = ports
}
