package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lateen.dev/lateen/internal/api"
)

func newProxy(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "proxy",
		Short:   "Look into proxies: sync state and configuration",
		Aliases: []string{"proxies"},
		Example: "  lateen proxy status\n  lateen proxy config route frontend --why\n  lateen proxy config secret frontend",
	}
	cmd.AddCommand(newProxyStatus(o), newProxyConfig(o))
	return cmd
}

func newProxyStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "status [POD]",
		Short:   "Say which proxies have which configuration, and since when",
		Example: "  lateen proxy status\n  lateen proxy status frontend\n  lateen proxy status -o json",
		Args:    cobra.MaximumNArgs(1),

		ValidArgsFunction: o.live(0, proxyNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			proxies, err := ask(cmd.Context(), o, func(ctx context.Context, c *api.Client) ([]api.ProxyStatus, error) { return c.Proxies(ctx) })
			if err != nil {
				return err
			}
			if len(args) == 1 {
				one, err := findProxy(proxies, args[0])
				if err != nil {
					return err
				}
				proxies = []api.ProxyStatus{one}
			}
			return o.print(proxiesOutput{apiVersion, proxies}, func(w io.Writer) { printProxies(w, proxies) })
		},
	}
}

// proxiesOutput is the machine form of proxy status.
type proxiesOutput struct {
	APIVersion string            `json:"apiVersion"`
	Proxies    []api.ProxyStatus `json:"proxies"`
}

// findProxy finds a proxy by pod.namespace, pod name, or the beginning of one
// as long as a single workload is meant.
func findProxy(proxies []api.ProxyStatus, name string) (api.ProxyStatus, error) {
	var matches []api.ProxyStatus
	var ids []string
	for _, p := range proxies {
		pod, _, _ := strings.Cut(p.ID, ".")
		if p.ID == name || pod == name {
			return p, nil
		}
		if strings.HasPrefix(p.ID, name) {
			matches = append(matches, p)
		}
		ids = append(ids, p.ID)
	}
	if len(matches) > 0 {
		return matches[0], nil
	}
	slices.Sort(ids)
	hint := "connected: " + strings.Join(ids, ", ")
	if len(ids) == 0 {
		hint = "no proxy is connected; lateen get pod lists pods"
	}
	return api.ProxyStatus{}, fail(exitFailed, hint, "no proxy %q is connected", name)
}

// configTypes maps the words of `proxy config` to the short names of xDS types.
var configTypes = []struct{ word, short string }{
	{"listener", "LDS"},
	{"route", "RDS"},
	{"cluster", "CDS"},
	{"endpoint", "EDS"},
	{"secret", "SDS"},
}

func newProxyConfig(o *options) *cobra.Command {
	var why bool
	cmd := &cobra.Command{
		Use:   "config (listener|route|cluster|endpoint|secret|all) POD",
		Short: "Show what a proxy was sent, and with --why which line of which file made it so",
		Example: `  lateen proxy config route frontend --why
  lateen proxy config cluster frontend-7c9f.default -o json
  lateen proxy config all frontend`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return words("listener", "route", "cluster", "endpoint", "secret", "all")(cmd, args, typed)
			}
			return o.live(1, proxyNames)(cmd, args, typed)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.proxyConfig(cmd.Context(), strings.TrimSuffix(args[0], "s"), args[1], why)
		},
	}
	cmd.Flags().BoolVar(&why, "why", false, "add the file:line that each entry comes from")
	return cmd
}

func (o *options) proxyConfig(ctx context.Context, what, pod string, why bool) error {
	known := what == "all"
	for _, t := range configTypes {
		known = known || t.word == what
	}
	if !known {
		return fail(exitUsage, "want listener, route, cluster, endpoint, secret or all", "there is no %q in a proxy's configuration", what)
	}
	var id string
	resources, err := ask(ctx, o, func(ctx context.Context, c *api.Client) (api.ProxyResources, error) {
		proxies, err := c.Proxies(ctx)
		if err != nil {
			return nil, err
		}
		p, err := findProxy(proxies, pod)
		if err != nil {
			return nil, err
		}
		id = p.ID
		return c.ProxyResources(ctx, id)
	})
	if err != nil {
		return err
	}
	if what == "secret" {
		return o.proxySecrets(ctx, id)
	}
	if o.output != "table" {
		return o.print(configOutput{apiVersion, id, pick(resources, what)}, nil)
	}
	places := originPlaces(resources)
	for _, t := range configTypes {
		if what != "all" && what != t.word {
			continue
		}
		if what == "all" {
			fmt.Fprintf(o.out, "%sS\n", strings.ToUpper(t.word))
		}
		if t.word == "secret" {
			if err := o.proxySecrets(ctx, id); err != nil {
				return err
			}
			continue
		}
		printResources(o.out, t.word, resources, t.short, places, why)
		if what == "all" {
			fmt.Fprintln(o.out)
		}
	}
	return nil
}

// configOutput is the machine form of proxy config: resources by name, or with
// "all" by type and name.
type configOutput struct {
	APIVersion string `json:"apiVersion"`
	Proxy      string `json:"proxy"`
	Resources  any    `json:"resources"`
}

func pick(r api.ProxyResources, what string) any {
	for _, t := range configTypes {
		if t.word == what {
			return r[t.short]
		}
	}
	return r
}

// originPlaces reads the origin table: stable id → file:line:column.
func originPlaces(r api.ProxyResources) map[string]string {
	places := map[string]string{}
	for _, raw := range r["ORIGIN"] {
		var table struct {
			Places map[string]struct {
				File         string
				Line, Column int
			}
		}
		if json.Unmarshal(raw, &table) != nil {
			continue
		}
		for id, p := range table.Places {
			places[id] = fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
		}
	}
	return places
}

// tree is a decoded protojson object.
type tree map[string]any

func (t tree) at(path ...string) any {
	var v any = map[string]any(t)
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		next, ok := m[key]
		if !ok {
			next = m[camel(key)]
		}
		v = next
	}
	return v
}

func (t tree) text(path ...string) string {
	if v := t.at(path...); v != nil {
		return fmt.Sprint(v)
	}
	return ""
}

func (t tree) list(path ...string) []tree {
	items, _ := t.at(path...).([]any)
	var out []tree
	for _, item := range items {
		if m, ok := item.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}

// camel turns snake_case into lowerCamelCase, the other spelling of protojson.
func camel(s string) string {
	parts := strings.Split(s, "_")
	for i, p := range parts[1:] {
		if p != "" {
			parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
		}
	}
	return strings.Join(parts, "")
}

func (t tree) origin() string { return t.text("metadata", "filter_metadata", "lateen", "origin") }

func printResources(w io.Writer, word string, all api.ProxyResources, short string, places map[string]string, why bool) {
	header, rowsOf := resourceColumns(word)
	resources := all[short]
	var names []string
	for name := range resources {
		names = append(names, name)
	}
	slices.Sort(names)
	var rows [][]string
	for _, name := range names {
		var t tree
		if err := json.Unmarshal(resources[name], &t); err != nil {
			rows = append(rows, []string{name, "cannot be read: " + err.Error()})
			continue
		}
		for _, r := range rowsOf(name, t) {
			if why && word == "endpoint" {
				// An endpoint is there because of its cluster.
				var cluster tree
				if json.Unmarshal(all["CDS"][name], &cluster) == nil {
					r.origin = cluster.origin()
				}
			}
			if why {
				r.cells = append(r.cells, because(r.origin, places))
			}
			rows = append(rows, r.cells)
		}
	}
	if why {
		header += " WHY"
	}
	columns(w, header, rows)
}

func because(origin string, places map[string]string) string {
	if origin == "" {
		return "default"
	}
	if place, ok := places[origin]; ok {
		return place + " " + origin
	}
	return origin
}

// row is one line of output and where it comes from.
type row struct {
	cells  []string
	origin string
}
