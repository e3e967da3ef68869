package cli

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/resource"
	"lateen.dev/lateen/internal/telemetry/query"
	"lateen.dev/lateen/internal/telemetry/store"
)

// completionLimit bounds what a press of Tab may cost; with no mesh running it
// completes nothing.
const completionLimit = 300 * time.Millisecond

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// live completes the one argument at position with names of the running mesh.
func (o *options) live(position int, names func(context.Context, *api.Client) []string) completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) != position {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completionLimit)
		defer cancel()
		client := api.NewClient(o.controlSocket())
		defer client.Close()
		found := slices.DeleteFunc(names(ctx, client), func(n string) bool { return !strings.HasPrefix(n, typed) })
		slices.Sort(found)
		return slices.Compact(found), cobra.ShellCompDirectiveNoFileComp
	}
}

// podNames are pods with their namespaces, and the workloads they stand for.
func podNames(ctx context.Context, c *api.Client) []string {
	pods, err := c.Objects(ctx, api.ObjectQuery{Kind: string(resource.KubePod)})
	if err != nil {
		return nil
	}
	var names []string
	for _, p := range pods {
		names = append(names, p.Key.Name+"."+p.Key.Namespace)
	}
	return names
}

func proxyNames(ctx context.Context, c *api.Client) []string {
	proxies, err := c.Proxies(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, p := range proxies {
		names = append(names, p.ID)
	}
	return names
}

// kindsAndObjects are what get takes: kinds, and objects in force.
func kindsAndObjects(ctx context.Context, c *api.Client) []string {
	var names []string
	for _, k := range resource.Kinds() {
		names = append(names, string(k.Kind))
	}
	objects, err := c.Objects(ctx, api.ObjectQuery{})
	if err != nil {
		return names
	}
	for _, o := range objects {
		names = append(names, objectName(o.Key))
	}
	return names
}

// appliedNames are the objects that delete may remove.
func appliedNames(ctx context.Context, c *api.Client) []string {
	objects, err := c.Objects(ctx, api.ObjectQuery{})
	if err != nil {
		return nil
	}
	var names []string
	for _, o := range objects {
		if strings.Contains(o.Source, "/config/") {
			names = append(names, objectName(o.Key))
		}
	}
	return names
}

func traceIDs(ctx context.Context, c *api.Client) []string {
	list, err := (&query.Client{HTTP: c.HTTP()}).List(ctx, store.Filter{Limit: 20})
	if err != nil {
		return nil
	}
	var names []string
	for i := range list.Traces {
		names = append(names, list.Traces[i].TraceID.String())
	}
	return names
}

// words completes a flag or an argument from a fixed list.
func words(list ...string) completer {
	return func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return slices.DeleteFunc(slices.Clone(list), func(w string) bool { return !strings.HasPrefix(w, typed) }), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag fails only for a flag that does not exist.
func completeFlag(cmd *cobra.Command, flag string, c completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, c); err != nil {
		panic(err)
	}
}

// shortKinds are the short names that kubectl's users type.
var shortKinds = map[string]resource.Kind{
	"vs": resource.VirtualService, "dr": resource.DestinationRule, "gw": resource.Gateway, "se": resource.ServiceEntry,
	"we": resource.WorkloadEntry, "wg": resource.WorkloadGroup, "ap": resource.AuthorizationPolicy,
	"pa": resource.PeerAuthentication, "ra": resource.RequestAuthentication,
	"ns": resource.Namespace, "sa": resource.ServiceAccount, "svc": resource.KubeService, "po": resource.KubePod,
	"deploy": resource.Deployment, "cm": resource.KubeConfigMap, "sts": resource.StatefulSet, "ds": resource.DaemonSet,
}

// notInForce says that an object does not exist, and what is near it.
func notInForce(q api.ObjectQuery, items []api.ObjectItem) error {
	want := objectName(api.ObjectKey(q))
	var names, there []string
	for _, i := range items {
		names = append(names, i.Key.Name)
		there = append(there, objectName(i.Key))
	}
	slices.Sort(there)
	hint := "no " + q.Kind + " is in force"
	if len(there) > 0 {
		hint = "in force: " + strings.Join(there[:min(len(there), 12)], ", ")
	}
	if near := resource.Nearest(q.Name, names); near != "" {
		i := slices.IndexFunc(items, func(i api.ObjectItem) bool { return i.Key.Name == near })
		hint = "did you mean " + objectName(items[i].Key) + "?"
	}
	return fail(exitFailed, hint, "%s is not in force", cmp.Or(want, q.Name))
}
