package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	kinds := make([]string, 0, len(s.Objects))
	for kind, n := range s.Objects {
		kinds = append(kinds, fmt.Sprintf("%d %s", n, kind))
	}
	slices.Sort(kinds)
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
		fmt.Fprintf(w, "%s  %s  %s  %s\n", f.Pos, f.Severity, f.CodeText(), f.Object)
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
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range files {
				if err := o.apply(cmd, name, dryRun); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "file or folder to apply; - for standard input")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would happen and change nothing")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

func (o *options) apply(cmd *cobra.Command, name string, dryRun bool) error {
	documents, err := readDocuments(cmd.InOrStdin(), name)
	if err != nil {
		return err
	}
	for _, d := range documents {
		r, err := ask(cmd.Context(), o, func(ctx context.Context, c *api.Client) (api.ApplyResult, error) {
			return c.Apply(ctx, api.Applied{Source: d.name, Data: d.data, DryRun: dryRun})
		})
		if err != nil {
			return err
		}
		if err := o.printChange("applied", r, dryRun); err != nil {
			return err
		}
	}
	return nil
}

func (o *options) printChange(verb string, r api.ApplyResult, dryRun bool) error {
	if dryRun {
		verb += " (dry run)"
	}
	err := o.print(r, func(w io.Writer) {
		for _, k := range r.Changed {
			fmt.Fprintf(w, "%s %s\n", objectName(k), verb)
		}
		if len(r.Findings) > 0 {
			printFindings(w, r.Findings)
		}
	})
	if err != nil {
		return err
	}
	if worst, any := finding.Worst(r.Findings); any && worst == finding.Error {
		return silent(exitFindings)
	}
	return nil
}

func objectName(k api.ObjectKey) string {
	return finding.Object{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}.String()
}

type document struct {
	name string
	data []byte
}

// readDocuments reads a file, all YAML files of a folder, or standard input.
func readDocuments(stdin io.Reader, name string) ([]document, error) {
	if name == "-" {
		data, err := io.ReadAll(stdin)
		return []document{{"stdin", data}}, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		data, err := os.ReadFile(name)
		return []document{{name, data}}, err
	}
	var docs []document
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); err != nil || d.IsDir() || ext != ".yaml" && ext != ".yml" {
			return err
		}
		data, err := os.ReadFile(path)
		docs = append(docs, document{path, data})
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
		Example: "  lateen delete VirtualService/reviews.default\n  lateen delete -f route.yaml",
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
			objects, _ := resource.Decode(d.name, d.data)
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
		Use:     "get [KIND[/NAME.NAMESPACE]]",
		Short:   "Show objects in force and where they come from",
		Example: "  lateen get\n  lateen get virtualservice\n  lateen get VirtualService/reviews.default -o yaml",
		Args:    cobra.MaximumNArgs(1),
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
			items, err := ask(cmd.Context(), o, func(ctx context.Context, c *api.Client) ([]api.ObjectItem, error) { return c.Objects(ctx, q) })
			if err != nil {
				return err
			}
			return o.printObjects(items)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only objects of this namespace")
	return cmd
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
	return o.print(items, func(w io.Writer) {
		var rows [][]string
		for _, item := range items {
			rows = append(rows, []string{objectName(item.Key), item.Source})
		}
		columns(w, "OBJECT SOURCE", rows)
	})
}
