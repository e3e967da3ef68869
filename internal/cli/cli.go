// Package cli is the command line of lateen: one file for each command, no
// logic of its own. Commands read files, or talk to the control process and the
// node over the unix sockets of the data directory.
//
// The result goes to stdout, everything else to stderr. Exit codes: 0 good, 1
// the command failed, 2 wrong usage, 3 not reachable or timed out, 4 findings at
// or above --fail-on, 5 the answer is "no" by policy.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"lateen.dev/lateen/internal/version"
)

// Exit codes of every command.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitUnreachable
	exitFindings
	exitNo
)

// failure is an error that knows its exit code and what to do next.
type failure struct {
	code int
	err  error
	hint string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(code int, hint string, format string, args ...any) error {
	return &failure{code: code, err: fmt.Errorf(format, args...), hint: hint}
}

// silent ends a command with a code and no message, because the result already
// says everything.
type silent int

func (s silent) Error() string { return fmt.Sprintf("exit %d", int(s)) }

// options are the flags that every command shares.
type options struct {
	dataDir string
	output  string
	out     io.Writer
	errOut  io.Writer
}

func (o *options) controlSocket() string { return filepath.Join(o.dataDir, "run", "control.sock") }

// Main runs the command line and returns the exit code. It ends on SIGINT and
// SIGTERM through the context that commands receive.
func Main(args []string) int {
	ends := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup: it shall outlive its terminal
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	return run(ctx, args, os.Stdout, os.Stderr)
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	o := &options{out: out, errOut: errOut}
	root := newRoot(o)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	return report(errOut, cmd, err)
}

func newRoot(o *options) *cobra.Command {
	root := &cobra.Command{
		Use:   "lateen",
		Short: "A service mesh with OTLP built in",
		Long: `Lateen runs Istio and Kubernetes manifests as a service mesh on one Linux machine,
without root, Docker or Kubernetes.`,
		Example: `  lateen up -f examples/orders          run a mesh until Ctrl-C
  lateen analyze my-manifests/          find what is wrong, with file:line:column
  lateen trace ls --error               requests that went wrong`,
		Version:            version.Version,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true,
	}
	root.PersistentFlags().StringVar(&o.dataDir, "data", ".lateen", "data directory of the running mesh")
	root.PersistentFlags().StringVarP(&o.output, "output", "o", "table", "output format: table, json or yaml")
	completeFlag(root, "output", words("table", "json", "yaml"))
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		// fix has an -o of its own, the folder to write to; o.output is then table.
		switch o.output {
		case "table", "json", "yaml":
			return nil
		}
		return fail(exitUsage, "want table, json or yaml", "output format %q is unknown", o.output)
	}
	root.AddCommand(
		newUp(o), newDown(o), newStatus(o),
		newApply(o), newDelete(o), newGet(o),
		newAnalyze(o), newFix(o),
		newExec(o), newLogs(o), newPortForward(o),
		newProxy(o), newTrace(o), newCollector(o), newVersion(o),
	)
	root.AddCommand(
		formerly(o, newProxyStatus(o), "proxy status", "proxy-status", "ps"),
		formerly(o, newProxyConfig(o), "proxy config", "proxy-config", "pc"),
	)
	control := newControl(o)
	control.Hidden = true
	root.AddCommand(control)
	return root
}

// formerly hides cmd behind the spellings of istioctl, which say the name it
// has here.
func formerly(o *options, cmd *cobra.Command, now, name string, aliases ...string) *cobra.Command {
	_, args, _ := strings.Cut(cmd.Use, " ")
	cmd.Use, cmd.Aliases, cmd.Hidden = name+" "+args, aliases, true
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		fmt.Fprintf(o.errOut, "this is: lateen %s\n", now)
		return run(cmd, args)
	}
	return cmd
}

// report prints err as people read it and returns the exit code.
func report(w io.Writer, cmd *cobra.Command, err error) int {
	if err == nil {
		return exitOK
	}
	var quiet silent
	if errors.As(err, &quiet) {
		return int(quiet)
	}
	var f *failure
	if errors.As(err, &f) {
		printError(w, f.err, f.hint)
		return f.code
	}
	if usage, hint := usageError(cmd, err); usage {
		printError(w, err, hint)
		return exitUsage
	}
	printError(w, err, "")
	return exitFailed
}

// printError prints an error and one hint: that of the command, or else the one
// the error itself carries in a line of its own.
func printError(w io.Writer, err error, hint string) {
	text, own, ok := strings.Cut(err.Error(), "\nhint: ")
	if ok && hint == "" {
		hint = own
	}
	fmt.Fprintf(w, "error: %s\n", text)
	for line := range strings.Lines(hint) {
		fmt.Fprintf(w, "hint:  %s\n", strings.TrimRight(line, "\n"))
	}
}

// usageError recognises the errors cobra makes of wrong arguments.
func usageError(cmd *cobra.Command, err error) (usage bool, hint string) {
	text := err.Error()
	for _, part := range []string{"unknown command", "unknown flag", "unknown shorthand", "flag needs", "accepts ", "requires ", "invalid argument", "required flag"} {
		if !strings.Contains(text, part) {
			continue
		}
		if part == "unknown command" {
			if near := suggestion(cmd, text); near != "" {
				return true, fmt.Sprintf("did you mean %q?", near)
			}
		}
		return true, "see: " + cmd.CommandPath() + " --help"
	}
	return false, ""
}

func suggestion(cmd *cobra.Command, text string) string {
	_, rest, ok := strings.Cut(text, `unknown command "`)
	if !ok {
		return ""
	}
	word, _, _ := strings.Cut(rest, `"`)
	cmd.SuggestionsMinimumDistance = 2
	for _, s := range cmd.SuggestionsFor(word) {
		return s
	}
	return ""
}
