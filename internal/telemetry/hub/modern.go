package hub

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"

	"go.opentelemetry.io/collector/confmap"
)

type convertFunc func(*confmap.Conf) error

// Convert applies the function.
func (f convertFunc) Convert(_ context.Context, c *confmap.Conf) error { return f(c) }

func converter(f convertFunc) confmap.ConverterFactory {
	return confmap.NewConverterFactory(func(confmap.ConverterSettings) confmap.Converter { return f })
}

// modernConverter accepts component names that the Collector has retired, with
// one warning each that gives the modern spelling. Everything else passes
// untouched.
func modernConverter(log *slog.Logger) confmap.ConverterFactory {
	return converter(func(c *confmap.Conf) error {
		exporters, _ := c.Get("exporters").(map[string]any)
		renamed := map[string]string{}
		for _, id := range sortedKeys(exporters) {
			kind, _, _ := strings.Cut(id, "/")
			cfg, _ := exporters[id].(map[string]any)
			var to string
			switch kind {
			case "jaeger":
				to, cfg = "otlp_grpc/"+strings.ReplaceAll(id, "/", "_"), modernJaeger(id, cfg, log)
			case "logging":
				to = "debug/" + strings.ReplaceAll(id, "/", "_")
				var err error
				if cfg, err = modernLogging(id, cfg, log); err != nil {
					return err
				}
			case "debug":
				if _, ok := cfg["loglevel"]; !ok {
					continue
				}
				var err error
				if cfg, err = modernLogging(id, cfg, log); err != nil {
					return err
				}
				to = id
			default:
				continue
			}
			if _, taken := exporters[to]; taken && to != id {
				return fmt.Errorf("exporters::%s: its modern name %q is in use already", id, to)
			}
			c.Delete("exporters::" + id)
			if err := c.Merge(confmap.NewFromStringMap(map[string]any{"exporters": map[string]any{to: cfg}})); err != nil {
				return fmt.Errorf("exporters::%s: %w", id, err)
			}
			renamed[id] = to
		}
		return eachPipeline(c, func(_ string, p map[string]any) bool { return rename(p, renamed) })
	})
}

// modernJaeger sends OTLP instead of Jaeger's retired protocol; port 14250
// becomes 4317.
func modernJaeger(id string, cfg map[string]any, log *slog.Logger) map[string]any {
	cfg = copyMap(cfg)
	endpoint, _ := cfg["endpoint"].(string)
	if host, port, err := net.SplitHostPort(endpoint); err == nil && port == "14250" {
		cfg["endpoint"] = net.JoinHostPort(host, "4317")
	}
	log.Warn("collector: exporter was removed in v0.85; it sends OTLP instead, which Jaeger takes since v1.35",
		"exporter", id, "write", fmt.Sprintf("otlp_grpc: {endpoint: %v}", cfg["endpoint"]))
	return cfg
}

// modernLogging maps loglevel to verbosity.
func modernLogging(id string, cfg map[string]any, log *slog.Logger) (map[string]any, error) {
	cfg = copyMap(cfg)
	if level, ok := cfg["loglevel"]; ok {
		if _, both := cfg["verbosity"]; both {
			return nil, fmt.Errorf("exporters::%s: loglevel and verbosity exclude each other; keep verbosity", id)
		}
		verbosity := "basic"
		switch fmt.Sprint(level) {
		case "debug":
			verbosity = "detailed"
		case "info":
			verbosity = "normal"
		}
		delete(cfg, "loglevel")
		cfg["verbosity"] = verbosity
	}
	verbosity, ok := cfg["verbosity"]
	if !ok {
		verbosity = "basic"
	}
	log.Warn("collector: exporter logging and its loglevel were removed in v0.111; debug takes its place",
		"exporter", id, "write", fmt.Sprintf("debug: {verbosity: %v}", verbosity))
	return cfg, nil
}

// teeName is the exporter that copies traces to the hub.
const teeName = "otlp_grpc/lateen_hub"

// teeConverter adds the hub to every trace pipeline, leaving what is there as
// it is. The hub's exporter has a queue of its own, so that the user's
// exporters do not wait for it.
func teeConverter(endpoint string, log *slog.Logger) confmap.ConverterFactory {
	return converter(func(c *confmap.Conf) error {
		var teed []string
		err := eachPipeline(c, func(name string, p map[string]any) bool {
			kind, _, _ := strings.Cut(name, "/")
			if kind != "traces" {
				return false
			}
			list, _ := p["exporters"].([]any)
			p["exporters"] = append(slices.Clone(list), teeName)
			teed = append(teed, name)
			return true
		})
		if err != nil || len(teed) == 0 {
			return err
		}
		log.Info("collector: traces are copied to the hub", "hub", endpoint, "pipelines", strings.Join(teed, ","))
		return c.Merge(confmap.NewFromStringMap(map[string]any{"exporters": map[string]any{teeName: map[string]any{
			"endpoint": endpoint, "tls": map[string]any{"insecure": true}, "compression": "none",
		}}}))
	})
}

// eachPipeline shows every pipeline to edit, which says whether it changed it.
func eachPipeline(c *confmap.Conf, edit func(name string, p map[string]any) bool) error {
	pipelines, _ := c.Get("service::pipelines").(map[string]any)
	for _, name := range sortedKeys(pipelines) {
		p, ok := pipelines[name].(map[string]any)
		if !ok {
			continue
		}
		p = copyMap(p)
		if !edit(name, p) {
			continue
		}
		if err := c.Merge(confmap.NewFromStringMap(map[string]any{"service": map[string]any{"pipelines": map[string]any{name: p}}})); err != nil {
			return fmt.Errorf("service::pipelines::%s: %w", name, err)
		}
	}
	return nil
}

// rename replaces exporters in a pipeline.
func rename(p map[string]any, names map[string]string) bool {
	list, _ := p["exporters"].([]any)
	list = slices.Clone(list)
	changed := false
	for i := range list {
		if to, ok := names[fmt.Sprint(list[i])]; ok {
			list[i], changed = to, true
		}
	}
	p["exporters"] = list
	return changed
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func copyMap(m map[string]any) map[string]any {
	out := make(map[string]any, len(m)+1)
	for k, v := range m {
		out[k] = v
	}
	return out
}
