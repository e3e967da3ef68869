package analyze

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// collector is one OpenTelemetry Collector configuration in a ConfigMap.
type collector struct {
	r    *run
	o    *resource.Object
	base string // path of the configuration's root, ending in "@"
	root *yaml.Node
	// The container that mounts it, if one was found.
	in        *template
	container *resource.Container
	tag       release
}

// release is the version in an image's tag; the zero release is unknown.
type release [3]int

func (v release) known() bool { return v != release{} }

func (v release) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// before reports whether v is known and older than 0.minor.
func (v release) before(minor int) bool { return v.known() && v[0] == 0 && v[1] < minor }

// since reports whether v is known to be 0.minor or newer.
func (v release) since(minor int) bool { return v.known() && !v.before(minor) }

// Releases of the Collector, as the minor of 0.x, in which names came and went.
const (
	jaegerRemoved     = 85
	debugAdded        = 86
	loggingRemoved    = 111
	openCensusRemoved = 134
	otlpRenamed       = 144
)

// raisedTag is the tag an image is raised to when the new spellings need it: it
// has exporter debug, and still receiver opencensus.
const raisedTag = "0.133.0"

// collectors checks every Collector configuration among the ConfigMaps.
func (r *run) collectors() {
	for _, o := range r.objects {
		if o.Kind != resource.KubeConfigMap {
			continue
		}
		cm, _ := o.ConfigMap()
		for _, key := range sortedKeys(cm.Data) {
			if !strings.Contains(cm.Data[key], "pipelines:") || !strings.Contains(cm.Data[key], "exporters:") {
				continue
			}
			path := resource.Field("data", key)
			root, err := o.Embedded(path)
			if err != nil {
				pos := o.ValuePos(path)
				line, text := resource.ErrorLine(err)
				if line > 0 {
					pos.Line, pos.Column = line, 1
				}
				r.findings = append(r.findings, finding.Newf(finding.CollectorSyntax, o.Object(), path, pos, "the Collector configuration does not parse: %s", text))
				continue
			}
			if mapping(root) && mapping(get(root, "service")) && mapping(get(get(root, "service"), "pipelines")) {
				c := &collector{r: r, o: o, base: path + "@", root: root}
				c.findContainer()
				c.check()
			}
		}
	}
}

func mapping(n *yaml.Node) bool { return n != nil && n.Kind == yaml.MappingNode }

// get returns the value of a key, nil if there is none.
func get(n *yaml.Node, key string) *yaml.Node {
	if !mapping(n) {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// findContainer looks for the container that mounts the ConfigMap.
func (c *collector) findContainer() {
	for i := range c.r.templates {
		t := &c.r.templates[i]
		if t.namespace != c.o.Namespace || t.running() {
			continue
		}
		for j := range t.Containers {
			if k := &t.Containers[j]; slices.Contains(k.ConfigMaps, c.o.Name) {
				c.in, c.container, c.tag = t, k, releaseOf(k.Image)
				return
			}
		}
	}
}

func releaseOf(image string) release {
	name := image[strings.LastIndexByte(image, '/')+1:]
	_, tag, ok := strings.Cut(name, ":")
	if !ok {
		return release{}
	}
	tag, _, _ = strings.Cut(tag, "@")
	var v release
	parts := strings.SplitN(strings.TrimPrefix(tag, "v"), ".", 3)
	if len(parts) != 3 {
		return release{}
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			return release{}
		}
		v[i] = n
	}
	return v
}

// kindOf returns the type of a component id: "otlp" of "otlp/backend".
func kindOf(id string) string {
	kind, _, _ := strings.Cut(id, "/")
	return kind
}

func (c *collector) add(code, path, hint, format string, args ...any) *finding.Finding {
	return c.r.add(c.o, code, c.base+path, hint, format, args...)
}

func (c *collector) check() {
	c.exporters()
	c.receivers()
	c.pipelines()
	c.memory()
}

// components calls f for every component of a section, in file order.
func (c *collector) components(section string, f func(id string, key, config *yaml.Node)) {
	n := get(c.root, section)
	if !mapping(n) {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		f(n.Content[i].Value, n.Content[i], n.Content[i+1])
	}
}

func (c *collector) exporters() {
	c.components("exporters", func(id string, _, config *yaml.Node) {
		path := resource.Field("exporters", id)
		switch kindOf(id) {
		case "jaeger", "jaeger_thrift":
			f := c.add(finding.CollectorJaeger, path, "send OTLP: exporter otlp/jaeger to port 4317",
				"exporter %q was removed from the Collector in 0.%d", id, jaegerRemoved)
			f.Fix = c.jaegerFix(id, config)
			c.image(jaegerRemoved, "exporter", id)
		case "logging":
			f := c.add(finding.CollectorLogging, path, "write debug", "exporter %q was renamed to debug in 0.%d and removed in 0.%d", id, debugAdded, loggingRemoved)
			f.Fix = c.loggingFix(id)
			c.image(loggingRemoved, "exporter", id)
		case "debug":
			if c.tag.before(debugAdded) {
				c.imageFinding("image tag %s has no exporter %q, which came in 0.%d; the Collector does not start", c.tag, id, debugAdded)
			}
		}
		if k := kindOf(id); k == "logging" || k == "debug" {
			c.loglevel(path, config)
		}
		c.alias(path, id)
		c.exporterHost(path, id, config)
	})
}

// alias notes names that newer Collectors still accept, where the image in use
// has the new ones.
func (c *collector) alias(path, id string) {
	next, ok := map[string]string{"otlp": "otlp_grpc", "otlphttp": "otlp_http"}[kindOf(id)]
	if !ok || !c.tag.since(otlpRenamed) {
		return
	}
	f := c.add(finding.CollectorAlias, path, "write "+next, "exporter %q was renamed to %s in 0.%d; the old name is a deprecated alias", kindOf(id), next, otlpRenamed)
	if edits, ok := c.rename("exporters", id, strings.Replace(id, kindOf(id), next, 1)); ok {
		f.Fix = fixOf(fmt.Sprintf("exporter %s is now %s", kindOf(id), next), edits...)
	}
}

func (c *collector) loglevel(path string, config *yaml.Node) {
	level := get(config, "loglevel")
	if level == nil {
		return
	}
	verbosity := verbosityOf(level.Value)
	f := c.add(finding.CollectorLoglevel, path+".loglevel", "write verbosity: "+verbosity, "loglevel was replaced by verbosity")
	key := c.o.Find(c.base + path + ".loglevel").Key
	k, ok1 := replace(c.o.Text(), key, "loglevel", "verbosity")
	v, ok2 := replace(c.o.Text(), level, level.Value, verbosity)
	if ok1 && ok2 {
		f.Fix = fixOf(fmt.Sprintf("loglevel: %s is now verbosity: %s", level.Value, verbosity), k, v)
	}
}

func verbosityOf(level string) string {
	switch strings.ToLower(level) {
	case "debug":
		return "detailed"
	case "info":
		return "normal"
	}
	return "basic"
}

// image reports that the image in use lacks a component removed in 0.minor.
func (c *collector) image(minor int, what, id string) {
	if c.tag.since(minor) {
		c.imageFinding("image tag %s has no %s %q, removed in 0.%d; this Collector does not start", c.tag, what, id, minor)
	}
}

func (c *collector) imageFinding(format string, args ...any) {
	c.r.addValue(c.in.object, finding.CollectorImage, c.container.Path+".image", "mend the configuration in "+c.o.Key.String(), format, args...)
}

// exporterHost checks that the host an exporter sends to exists.
func (c *collector) exporterHost(path, id string, config *yaml.Node) {
	switch kindOf(id) {
	case "prometheus", "debug", "logging", "file", "nop":
		return // these listen or write
	}
	e := get(config, "endpoint")
	if e == nil || strings.Contains(e.Value, "${") {
		return
	}
	host := endpointHost(e.Value)
	name, missing := c.r.unresolved(host, c.o.Namespace)
	if !missing {
		return
	}
	hint := "declare a Service of that name, or correct it"
	others := c.r.elsewhere(name, c.o.Namespace)
	if len(others) > 0 {
		hint = fmt.Sprintf("Service %s exists in namespace %s: write %s.%s", name, others[0], name, others[0])
	}
	f := c.r.addValue(c.o, finding.CollectorHost, c.base+path+".endpoint", hint, "exporter %q sends to %q, which does not exist in namespace %s", id, host, c.o.Namespace)
	if len(others) == 1 && !strings.Contains(host, ".") {
		f.Fix = hostFix(c.o, c.base+path+".endpoint", host, others[0])
	}
}

func (c *collector) receivers() {
	c.components("receivers", func(id string, _, _ *yaml.Node) {
		if kindOf(id) != "opencensus" {
			return
		}
		path := resource.Field("receivers", id)
		if c.tag.before(openCensusRemoved) {
			c.add(finding.CollectorOpenCensus, path, "send OTLP to port 4317", "receiver %q was removed from the Collector in 0.%d; image tag %s still has it", id, openCensusRemoved, c.tag)
			return
		}
		c.add(finding.CollectorOpenCensus, path, "send OTLP to port 4317", "receiver %q was removed from the Collector in 0.%d; Lateen has one of its own", id, openCensusRemoved)
		c.image(openCensusRemoved, "receiver", id)
	})
}

// pipelines checks what pipelines use and in which order.
func (c *collector) pipelines() {
	used := map[string]bool{}
	service := get(c.root, "service")
	pipelines := get(service, "pipelines")
	for i := 0; i+1 < len(pipelines.Content); i += 2 {
		name, p := pipelines.Content[i].Value, pipelines.Content[i+1]
		path := resource.Field("service.pipelines", name)
		for _, section := range []string{"receivers", "processors", "exporters"} {
			c.pipelineRefs(path, section, get(p, section), used)
		}
		c.order(path, name, get(p, "processors"))
	}
	if ext := get(service, "extensions"); ext != nil {
		for _, n := range ext.Content {
			used["extensions "+n.Value] = true
		}
	}
	for _, section := range []string{"receivers", "processors", "exporters", "extensions"} {
		c.components(section, func(id string, _, _ *yaml.Node) {
			if !used[section+" "+id] {
				c.add(finding.CollectorUnused, resource.Field(section, id), "", "%s %q is used by no pipeline", strings.TrimSuffix(section, "s"), id)
			}
		})
	}
}

func (c *collector) pipelineRefs(path, section string, refs *yaml.Node, used map[string]bool) {
	if refs == nil || refs.Kind != yaml.SequenceNode {
		return
	}
	for j, ref := range refs.Content {
		id := ref.Value
		used[section+" "+id] = true
		known := get(c.root, section) != nil && has(get(c.root, section), id)
		if section != "processors" && has(get(c.root, "connectors"), id) {
			known = true
		}
		if known {
			continue
		}
		var names []string
		c.components(section, func(id string, _, _ *yaml.Node) { names = append(names, id) })
		hint := "define it under " + section
		if near := resource.Nearest(id, names); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		c.add(finding.CollectorUndefined, fmt.Sprintf("%s.%s[%d]", path, section, j), hint, "%s %q is not defined; the Collector does not start", strings.TrimSuffix(section, "s"), id)
	}
}

// has reports whether a mapping has the key, with or without a value.
func has(n *yaml.Node, key string) bool {
	if !mapping(n) {
		return false
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return true
		}
	}
	return false
}

func (c *collector) order(path, name string, processors *yaml.Node) {
	if processors == nil || processors.Kind != yaml.SequenceNode {
		return
	}
	for j, p := range processors.Content {
		if kindOf(p.Value) == "memory_limiter" && j > 0 {
			c.add(finding.CollectorOrder, fmt.Sprintf("%s.processors[%d]", path, j), "put it first",
				"in pipeline %q memory_limiter stands behind %q, which may already hold what it should refuse", name, processors.Content[j-1].Value)
		}
	}
}

// memory notes a Collector that limits itself and has no limit around it.
func (c *collector) memory() {
	if c.container == nil || c.container.MemoryLimit > 0 {
		return
	}
	c.components("processors", func(id string, _, config *yaml.Node) {
		if limit := get(config, "limit_mib"); kindOf(id) == "memory_limiter" && limit != nil {
			c.r.add(c.in.object, finding.CollectorMemory, c.container.Path, "add resources.limits.memory",
				"container %q has no memory limit, and its memory_limiter counts on %s MiB", c.container.Name, limit.Value)
		}
	})
}

// jaegerFix turns an exporter jaeger into one that sends OTLP to the same host.
func (c *collector) jaegerFix(id string, config *yaml.Node) *finding.Fix {
	next := "otlp/jaeger"
	if c.tag.since(otlpRenamed) {
		next = "otlp_grpc/jaeger"
	}
	next = c.freeID("exporters", next)
	edits, ok := c.rename("exporters", id, next)
	if !ok {
		return nil
	}
	summary := fmt.Sprintf("exporter %s is now %s: Jaeger takes OTLP", id, next)
	if e := get(config, "endpoint"); e != nil && strings.Contains(e.Value, ":14250") {
		edit, ok := replace(c.o.Text(), e, ":14250", ":4317")
		if !ok {
			edit, ok = replace(c.o.Text(), e, e.Value, strings.Replace(e.Value, ":14250", ":4317", 1))
		}
		if !ok {
			return nil
		}
		edits = append(edits, edit)
		summary += " on port 4317 instead of 14250"
	}
	return fixOf(summary, edits...)
}

// loggingFix turns an exporter logging into debug, raising the image's tag where
// it is too old to have one.
func (c *collector) loggingFix(id string) *finding.Fix {
	next := c.freeID("exporters", strings.Replace(id, "logging", "debug", 1))
	edits, ok := c.rename("exporters", id, next)
	if !ok {
		return nil
	}
	summary := fmt.Sprintf("exporter %s is now %s", id, next)
	if c.tag.before(debugAdded) {
		image := c.in.object.Find(c.container.Path + ".image")
		edit, ok := replace(c.in.object.Text(), image.Value, c.tag.String(), raisedTag)
		if !ok {
			return nil
		}
		edits = append(edits, edit)
		summary += fmt.Sprintf(", which needs the image tag raised from %s to %s", c.tag, raisedTag)
	}
	return fixOf(summary, edits...)
}

// freeID returns id, or id with a name or number if the section has it already.
func (c *collector) freeID(section, id string) string {
	if id == "debug" && has(get(c.root, section), id) {
		id = "debug/logging"
	}
	next := id
	for n := 2; has(get(c.root, section), next); n++ {
		next = fmt.Sprintf("%s-%d", id, n)
	}
	return next
}

// rename changes a component's id where it is defined and used.
func (c *collector) rename(section, id, next string) ([]finding.Edit, bool) {
	def, ok := replace(c.o.Text(), c.o.Find(c.base+resource.Field(section, id)).Key, id, next)
	if !ok {
		return nil, false
	}
	edits := []finding.Edit{def}
	pipelines := get(get(c.root, "service"), "pipelines")
	for i := 1; i < len(pipelines.Content); i += 2 {
		refs := get(pipelines.Content[i], section)
		if refs == nil || refs.Kind != yaml.SequenceNode {
			continue
		}
		for _, ref := range refs.Content {
			if ref.Value != id {
				continue
			}
			e, ok := replace(c.o.Text(), ref, id, next)
			if !ok {
				return nil, false
			}
			edits = append(edits, e)
		}
	}
	return edits, true
}
