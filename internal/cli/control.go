package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// callTimeout bounds one question to the control process.
const callTimeout = 20 * time.Second

// ask calls the control process and turns its errors into ours.
func ask[T any](ctx context.Context, o *options, call func(context.Context, *api.Client) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client := api.NewClient(o.controlSocket())
	defer client.Close()
	v, err := call(ctx, client)
	return v, o.explain(err)
}

// explain gives an error of the control socket its exit code and hint.
func (o *options) explain(err error) error {
	var answer *api.Error
	var dial *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answer):
		return &failure{code: exitFailed, err: errors.New(answer.Message), hint: answer.Hint}
	case errors.Is(err, fs.ErrNotExist), errors.As(err, &dial), errors.Is(err, context.DeadlineExceeded):
		cause := err
		var errno syscall.Errno
		if errors.As(err, &errno) {
			cause = errno // the rest only repeats the socket's name
		}
		return &failure{
			code: exitUnreachable,
			err:  fmt.Errorf("no mesh answers at %s: %w", o.controlSocket(), cause),
			hint: "start one with \"lateen up -f PATH\", or name its data directory with --data",
		}
	}
	return err
}

func newStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Say how the running mesh is: proxies, certificates, findings",
		Example: "  lateen status\n  lateen status -o json\n  lateen status --data /tmp/mesh",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := ask(cmd.Context(), o, func(ctx context.Context, c *api.Client) (api.Status, error) { return c.Status(ctx) })
			if err != nil {
				return err
			}
			return o.print(s, func(w io.Writer) { printStatus(w, s) })
		},
	}
}

func printStatus(w io.Writer, s api.Status) {
	fmt.Fprintf(w, "lateen %s, trust domain %s, root valid until %s, revision %d\n",
		s.Version, s.TrustDomain, s.RootExpiry.Format(time.DateOnly), s.Revision)
	kinds := slices.Sorted(maps.Keys(s.Objects))
	for i, kind := range kinds {
		kinds[i] = fmt.Sprintf("%d %s", s.Objects[kind], kind)
	}
	fmt.Fprintf(w, "objects  %s\n\n", strings.Join(kinds, ", "))
	printProxies(w, s.Proxies)
	if len(s.Findings) > 0 {
		fmt.Fprintln(w)
		printFindings(w, s.Findings)
	}
}

// proxyTypes are the columns of `proxy status`.
var proxyTypes = []string{"LDS", "RDS", "CDS", "EDS"}

func printProxies(w io.Writer, proxies []api.ProxyStatus) {
	var rows [][]string
	var refused []string
	for _, p := range proxies {
		state := "synced"
		row := []string{p.ID, p.Role, "", age(time.Since(p.Since))}
		for _, name := range proxyTypes {
			t := p.Types[name]
			row = append(row, t.State)
			switch t.State {
			case "refused":
				state = "REFUSED"
				refused = append(refused, fmt.Sprintf("%s refused %s: %s", p.ID, name, t.Error))
			case "sent":
				if state == "synced" {
					state = "BEHIND"
				}
			}
		}
		row[2] = state
		cert := ""
		if !p.CertExpiry.IsZero() {
			cert = age(time.Until(p.CertExpiry))
		}
		rows = append(rows, append(row, cert, p.Version))
	}
	columns(w, "PROXY ROLE STATE SINCE LISTENERS ROUTES CLUSTERS ENDPOINTS CERT VERSION", rows)
	for _, line := range refused {
		fmt.Fprintln(w, line)
	}
}

// printFindings writes findings as istioctl's users know them, worst last line
// as a sum.
func printFindings(w io.Writer, fs []finding.Finding) {
	counts := map[finding.Severity]int{}
	for _, f := range fs {
		counts[f.Severity]++
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%s  %s  %s  %s", f.Pos, f.Severity, f.CodeText(), f.Object), " "))
		fmt.Fprintf(w, "    %s\n", f.Message)
		if f.Hint != "" {
			fmt.Fprintf(w, "    hint: %s\n", f.Hint)
		}
	}
	fmt.Fprintf(w, "%s, %s, %d info\n", plural(counts[finding.Error], "error"), plural(counts[finding.Warning], "warning"), counts[finding.Info])
}

func newApply(o *options) *cobra.Command {
	var files []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "apply -f FILE…",
		Short:   "Add or replace objects in the running mesh",
		Long:    "Add or replace objects in the running mesh. With an error finding nothing is changed.",
		Example: "  lateen apply -f route.yaml\n  lateen apply -f route.yaml --dry-run\n  cat route.yaml | lateen apply -f -",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.apply(cmd, files, dryRun) },
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "file or folder to apply; - for standard input")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would happen and change nothing")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

// apply sends everything at once, so that an error in the last file leaves the
// first one unapplied too.
func (o *options) apply(cmd *cobra.Command, files []string, dryRun bool) error {
	req := api.Applied{DryRun: dryRun}
	for _, name := range files {
		documents, err := readDocuments(cmd.InOrStdin(), name)
		if err != nil {
			return err
		}
		req.Manifests = append(req.Manifests, documents...)
	}
	r, err := ask(cmd.Context(), o, func(ctx context.Context, c *api.Client) (api.ApplyResult, error) { return c.Apply(ctx, req) })
	if err != nil {
		return err
	}
	return o.printChange("applied", r, dryRun)
}

func (o *options) printChange(verb string, r api.ApplyResult, dryRun bool) error {
	if dryRun {
		verb += " (dry run)"
	}
	err := o.print(changeOutput{apiVersion, r}, func(w io.Writer) {
		for _, k := range r.Changed {
			fmt.Fprintf(w, "%s %s\n", objectName(k), verb)
		}
		if len(r.Changed) == 0 && !refused(r.Findings) {
			fmt.Fprintln(w, "nothing changes: it is in force already")
		}
		if len(r.Findings) > 0 {
			printFindings(w, r.Findings)
		}
	})
	if err != nil {
		return err
	}
	if refused(r.Findings) {
		return silent(exitFindings)
	}
	return nil
}

// changeOutput is the machine form of apply and delete.
type changeOutput struct {
	APIVersion string `json:"apiVersion"`
	api.ApplyResult
}

func refused(fs []finding.Finding) bool {
	worst, any := finding.Worst(fs)
	return any && worst == finding.Error
}

func objectName(k api.ObjectKey) string {
	return finding.Object{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}.String()
}

// readDocuments reads a file, all YAML files of a folder, or standard input.
func readDocuments(stdin io.Reader, name string) ([]api.Manifest, error) {
	if name == "-" {
		data, err := io.ReadAll(stdin)
		return []api.Manifest{{Source: "stdin", Data: data}}, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fail(exitFailed, "name an existing file or folder with -f, or - for standard input", "read manifests: %w", err)
	}
	if !info.IsDir() {
		data, err := os.ReadFile(name)
		return []api.Manifest{{Source: name, Data: data}}, err
	}
	var docs []api.Manifest
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); err != nil || d.IsDir() || ext != ".yaml" && ext != ".yml" {
			return err
		}
		data, err := os.ReadFile(path)
		docs = append(docs, api.Manifest{Source: path, Data: data})
		return err
	})
	return docs, err
}

func newDelete(o *options) *cobra.Command {
	var files []string
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "delete (KIND/NAME.NAMESPACE… | -f FILE…)",
		Short:   "Remove objects that were applied",
		Long:    "Remove objects that were applied. Objects of watched files belong to their files and are refused.",
		Example: "  lateen delete VirtualService/reviews.default\n  lateen delete -f route.yaml\n  lateen delete -f route.yaml --dry-run",

		ValidArgsFunction: o.live(0, appliedNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := deleteKeys(cmd.InOrStdin(), args, files)
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), o, func(ctx context.Context, c *api.Client) (api.ApplyResult, error) {
				return c.Delete(ctx, api.Deleted{Keys: keys, DryRun: dryRun})
			})
			if err != nil {
				return err
			}
			return o.printChange("deleted", r, dryRun)
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "delete the objects that a file names")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would happen and change nothing")
	return cmd
}

func deleteKeys(stdin io.Reader, args, files []string) ([]api.ObjectKey, error) {
	var keys []api.ObjectKey
	for _, arg := range args {
		q, err := parseObject(arg)
		if err != nil {
			return nil, err
		}
		keys = append(keys, api.ObjectKey(q))
	}
	for _, name := range files {
		docs, err := readDocuments(stdin, name)
		if err != nil {
			return nil, err
		}
		for _, d := range docs {
			objects, _ := resource.Decode(d.Source, d.Data)
			for _, obj := range objects {
				keys = append(keys, api.ObjectKey{Kind: string(obj.Kind), Namespace: obj.Namespace, Name: obj.Name})
			}
		}
	}
	if len(keys) == 0 {
		return nil, fail(exitUsage, "see: lateen delete --help", "nothing to delete: name objects or files")
	}
	return keys, nil
}

// parseObject reads kind/name.namespace; without a namespace it is "default".
func parseObject(text string) (api.ObjectQuery, error) {
	kind, rest, ok := strings.Cut(text, "/")
	if !ok || kind == "" || rest == "" {
		return api.ObjectQuery{}, fail(exitUsage, "for example VirtualService/reviews.default", "%q is not KIND/NAME.NAMESPACE", text)
	}
	kind, err := kindName(kind)
	if err != nil {
		return api.ObjectQuery{}, err
	}
	q := api.ObjectQuery{Kind: kind, Name: rest, Namespace: "default"}
	if i := strings.LastIndex(rest, "."); i > 0 {
		q.Name, q.Namespace = rest[:i], rest[i+1:]
	}
	return q, nil
}

// kindName finds a kind whatever its case, also in the plural.
func kindName(word string) (string, error) {
	if k, ok := shortKinds[strings.ToLower(word)]; ok {
		return string(k), nil
	}
	var names []string
	for _, k := range resource.Kinds() {
		name := string(k.Kind)
		for _, form := range []string{name, name + "s", name + "es", strings.TrimSuffix(name, "y") + "ies"} {
			if strings.EqualFold(form, word) {
				return name, nil
			}
		}
		names = append(names, name)
	}
	hint := "kinds: " + strings.Join(names, ", ")
	if near := resource.Nearest(word, names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return "", fail(exitUsage, hint, "kind %q is unknown", word)
}

func newGet(o *options) *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:               "get [KIND[/NAME.NAMESPACE]]",
		Short:             "Show objects in force and where they come from",
		Example:           "  lateen get\n  lateen get virtualservice\n  lateen get VirtualService/reviews.default -o yaml",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: o.live(0, kindsAndObjects),
		RunE: func(cmd *cobra.Command, args []string) error {
			var q api.ObjectQuery
			var err error
			if len(args) == 1 && strings.Contains(args[0], "/") {
				q, err = parseObject(args[0])
			} else if len(args) == 1 {
				q.Kind, err = kindName(args[0])
			}
			if err != nil {
				return err
			}
			if namespace != "" {
				q.Namespace = namespace
			}
			items, err := o.objects(cmd.Context(), q)
			if err != nil {
				return err
			}
			return o.printObjects(items)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only objects of this namespace")
	return cmd
}

// objects asks for objects in force; one that is named must be there.
func (o *options) objects(ctx context.Context, q api.ObjectQuery) ([]api.ObjectItem, error) {
	items, err := ask(ctx, o, func(ctx context.Context, c *api.Client) ([]api.ObjectItem, error) { return c.Objects(ctx, q) })
	if err != nil || len(items) > 0 {
		return items, err
	}
	if q.Name == "" {
		fmt.Fprintf(o.errOut, "no %s is in force\n", cmp.Or(q.Kind, "object"))
		return items, nil
	}
	all, err := ask(ctx, o, func(ctx context.Context, c *api.Client) ([]api.ObjectItem, error) {
		return c.Objects(ctx, api.ObjectQuery{Kind: q.Kind})
	})
	if err != nil {
		return nil, err
	}
	return nil, notInForce(q, all)
}

// objectsOutput is the machine form of get.
type objectsOutput struct {
	APIVersion string           `json:"apiVersion"`
	Objects    []api.ObjectItem `json:"objects"`
}

func (o *options) printObjects(items []api.ObjectItem) error {
	if o.output == "yaml" {
		for _, item := range items {
			text, err := api.YAML(item.Object)
			if err != nil {
				return fmt.Errorf("print %s: %w", objectName(item.Key), err)
			}
			fmt.Fprintf(o.out, "--- # %s\n%s", item.Source, text)
		}
		return nil
	}
	return o.print(objectsOutput{apiVersion, items}, func(w io.Writer) {
		var rows [][]string
		for _, item := range items {
			rows = append(rows, []string{objectName(item.Key), item.Source})
		}
		if len(rows) > 0 {
			columns(w, "OBJECT SOURCE", rows)
		}
	})
}
