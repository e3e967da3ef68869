package cli

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lateen.dev/lateen/internal/control/analyze"
	"lateen.dev/lateen/internal/control/fix"
	"lateen.dev/lateen/internal/finding"
)

// findingsOutput is the machine form of analyze.
type findingsOutput struct {
	APIVersion string            `json:"apiVersion"`
	Objects    int               `json:"objects"`
	Findings   []finding.Finding `json:"findings"`
}

func newAnalyze(o *options) *cobra.Command {
	var failOn string
	var suppressed []string
	cmd := &cobra.Command{
		Use:   "analyze PATH…",
		Short: "Say what is wrong with manifests, with file:line:column",
		Long: `Say what is wrong with manifests, all at once, with file:line:column and a hint.
Nothing needs to run. The exit code is 4 when there are findings at or above --fail-on.`,
		Example: "  lateen analyze my-manifests/\n  lateen analyze a.yaml b.yaml --fail-on warning\n  lateen analyze my-manifests/ -o json",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			bar, err := severity(failOn)
			if err != nil {
				return err
			}
			if _, err := suppress(nil, suppressed); err != nil {
				return err // wrong usage, whatever the files hold
			}
			findings, objects, err := analyze.Paths(args)
			if err != nil {
				return fail(exitFailed, "name an existing file or folder of manifests", "analyze: %w", err)
			}
			if findings, err = suppress(findings, suppressed); err != nil {
				return err
			}
			finding.Sort(findings)
			out := findingsOutput{APIVersion: apiVersion, Objects: objects, Findings: findings}
			if err := o.print(out, func(w io.Writer) {
				printFindings(w, findings)
				fmt.Fprintf(w, "%s read\n", plural(objects, "object"))
			}); err != nil {
				return err
			}
			if worst, any := finding.Worst(findings); any && worst >= bar {
				return silent(exitFindings)
			}
			return nil
		},
	}
	cmd.AddCommand(newAnalyzeList(o))
	cmd.Flags().StringArrayVar(&suppressed, "suppress", nil, "CODE or CODE=KIND/NAME.NAMESPACE not to report; * stands for any text")
	cmd.Flags().StringVar(&failOn, "fail-on", "error", "lowest severity that makes the exit code 4: info, warning or error")
	completeFlag(cmd, "fail-on", words("info", "warning", "error"))
	return cmd
}

// suppress leaves out the findings that the arguments of --suppress name.
func suppress(fs []finding.Finding, args []string) ([]finding.Finding, error) {
	for _, arg := range args {
		code, object, named := strings.Cut(arg, "=")
		if _, known := finding.Lookup(code); !known {
			return nil, fail(exitUsage, "lateen analyze list prints the codes", "--suppress %q: there is no code %q", arg, code)
		}
		if _, err := path.Match(object, ""); err != nil {
			return nil, fail(exitUsage, "for example "+code+"=Service/*.shop", "--suppress %q: %w", arg, err)
		}
		fs = slices.DeleteFunc(fs, func(f finding.Finding) bool {
			// Slashes are ordinary in names of objects, so the match is on one element.
			flat := strings.NewReplacer("/", "|")
			match, _ := path.Match(flat.Replace(object), flat.Replace(f.Object.String()))
			return f.Code == code && (!named || match)
		})
	}
	return fs, nil
}

// codesOutput is the machine form of analyze list.
type codesOutput struct {
	APIVersion string       `json:"apiVersion"`
	Codes      []codeOutput `json:"codes"`
}

// codeOutput is one line of analyze list.
type codeOutput struct {
	Code        string           `json:"code"`
	Istio       string           `json:"istio,omitempty"`
	Severity    finding.Severity `json:"severity"`
	Title       string           `json:"title"`
	Explanation string           `json:"explanation"`
}

func newAnalyzeList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List every code that findings can have",
		Example: "  lateen analyze list\n  lateen analyze list -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var codes []codeOutput
			var rows [][]string
			for _, c := range finding.Codes() {
				codes = append(codes, codeOutput{Code: c.ID, Istio: c.Istio, Severity: c.Severity, Title: c.Title, Explanation: c.Explanation})
				rows = append(rows, []string{c.ID, c.Istio, c.Severity.String(), c.Title})
			}
			return o.print(codesOutput{apiVersion, codes}, func(w io.Writer) { columns(w, "CODE ISTIO SEVERITY TITLE", rows) })
		},
	}
}

func severity(name string) (finding.Severity, error) {
	s, err := finding.ParseSeverity(name)
	if err != nil {
		return 0, fail(exitUsage, "for example --fail-on warning", "--fail-on: %w", err)
	}
	return s, nil
}

func newFix(o *options) *cobra.Command {
	var dir, format string
	var inPlace bool
	cmd := &cobra.Command{
		Use:   "fix PATH… (-o DIR | --in-place)",
		Short: "Write corrected copies of manifests, comments kept",
		Long: `Write corrected copies of manifests. What an edit does not touch stays as it was, to the
byte. It says what it changed and why; the exit code is 4 if an error is left.`,
		Example: "  lateen fix -o mended/ my-manifests/\n  lateen fix --in-place my-manifests/\n  lateen fix -o mended/ my-manifests/ --format json",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if !slices.Contains([]string{"table", "json", "yaml"}, format) {
				return fail(exitUsage, "want table, json or yaml", "output format %q is unknown", format)
			}
			if dir == "" && !inPlace {
				return fail(exitUsage, "name a folder with -o DIR, or say --in-place", "where to write the corrected files is not said")
			}
			r, err := fix.Files(args)
			if err != nil {
				return fail(exitFailed, "name an existing file or folder of manifests", "fix: %w", err)
			}
			if err := writeFixed(r, dir); err != nil {
				return err
			}
			o.output = format
			if err := o.print(fixedOutput(r), func(w io.Writer) { printFix(w, r) }); err != nil {
				return err
			}
			if worst, any := finding.Worst(r.Left); any && worst == finding.Error {
				return silent(exitFindings)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&dir, "output", "o", "", "folder to write the copies to")
	cmd.Flags().BoolVar(&inPlace, "in-place", false, "change the files themselves")
	cmd.Flags().StringVar(&format, "format", "table", "how to say what was changed: table, json or yaml")
	completeFlag(cmd, "format", words("table", "json", "yaml"))
	return cmd
}

// writeFixed writes every file below dir, or over itself when dir is empty.
func writeFixed(r *fix.Result, dir string) error {
	for _, f := range r.Files {
		name := f.Name
		if dir != "" {
			name = filepath.Join(dir, f.Rel)
		}
		var err error
		switch {
		case f.Removed && dir == "":
			err = os.Remove(name)
		case f.Removed, dir == "" && !f.Changed():
		default:
			if err = os.MkdirAll(filepath.Dir(name), 0o755); err == nil {
				err = os.WriteFile(name, f.After, 0o644)
			}
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// fixOutput is the machine form of fix.
type fixOutput struct {
	APIVersion string            `json:"apiVersion"`
	Changes    []fixChange       `json:"changes"`
	Removed    []string          `json:"removed"` // files merged into others
	Left       []finding.Finding `json:"left"`
}

type fixChange struct {
	Position finding.Position `json:"position"`
	Code     string           `json:"code"`
	Object   finding.Object   `json:"object"`
	Summary  string           `json:"summary"`
}

func fixedOutput(r *fix.Result) fixOutput {
	out := fixOutput{APIVersion: apiVersion, Changes: []fixChange{}, Removed: []string{}, Left: slices.Clone(r.Left)}
	for _, c := range r.Changes {
		out.Changes = append(out.Changes, fixChange{c.Pos, c.Code, c.Object, c.Summary})
	}
	for _, f := range r.Files {
		if f.Removed {
			out.Removed = append(out.Removed, f.Name)
		}
	}
	return out
}

func printFix(w io.Writer, r *fix.Result) {
	for _, c := range r.Changes {
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%s  fixed  %s  %s", c.Pos, c.Code, c.Object), " "))
		fmt.Fprintf(w, "    %s\n", c.Summary)
	}
	for _, f := range r.Files {
		if f.Removed {
			fmt.Fprintf(w, "%s  merged: nothing of it is left\n", f.Name)
		}
	}
	if len(r.Left) > 0 {
		fmt.Fprintln(w, "\nleft as it is:")
		printFindings(w, r.Left)
	}
	fmt.Fprintf(w, "%s applied\n", plural(len(r.Changes), "change"))
}
