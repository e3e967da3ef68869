package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"lateen.dev/lateen/internal/app"
	"lateen.dev/lateen/internal/local"
)

// upFlags are the flags of up.
type upFlags struct {
	files        []string
	images       []string
	detach       bool
	logLevel     string
	certLifetime time.Duration
}

func newUp(o *options) *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up -f PATH…",
		Short: "Run Kubernetes and Istio manifests as a mesh on this machine",
		Long: `Run Kubernetes and Istio manifests as a mesh on this machine, without root, Docker or
Kubernetes. It watches the files, prints what started and where, and runs until
Ctrl-C, which stops everything and leaves nothing behind.`,
		Example: `  lateen up -f examples/orders
  lateen up -f manifests/ --image your-registry/go-app:latest=./go-app
  lateen up -f examples/orders --detach`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.up(cmd.Context(), f) },
	}
	cmd.Flags().StringArrayVarP(&f.files, "filename", "f", nil, "file or folder of manifests to run and watch")
	cmd.Flags().StringArrayVar(&f.images, "image", nil, "NAME=PROGRAM: the program that stands for a container image")
	cmd.Flags().BoolVar(&f.detach, "detach", false, "return once everything is ready; stop it with lateen down")
	cmd.Flags().StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().DurationVar(&f.certLifetime, "cert-lifetime", 0, "lifetime of workload certificates (default 24h)")
	_ = cmd.MarkFlagRequired("filename")
	completeFlag(cmd, "log-level", words("debug", "info", "warn", "error"))
	return cmd
}

func (o *options) up(ctx context.Context, f upFlags) error {
	images := map[string]string{}
	for _, i := range f.images {
		name, program, ok := strings.Cut(i, "=")
		if !ok {
			return fail(exitUsage, "for example --image shop/web:1.0=./web", "--image %q is not NAME=PROGRAM", i)
		}
		images[name] = program
	}
	for _, path := range f.files {
		if _, err := os.Stat(path); err != nil {
			return fail(exitFailed, "name an existing file or folder with -f", "read manifests: %w", err)
		}
	}
	if f.detach {
		return o.upDetached(ctx)
	}
	self, proxy, node, err := programs()
	if err != nil {
		return err
	}
	argv, err := o.controlArgs(self, f)
	if err != nil {
		return err
	}
	out := &shared{w: o.out}
	telling, told := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { o.tell(telling, out) })
	err = local.Up(ctx, local.Options{
		DataDir: o.dataDir, Images: images, ProxyProgram: proxy, NodeProgram: node, SelfProgram: self, Control: argv,
		Progress: func(e local.Event) { printEvent(out, e) },
		LogLevel: f.logLevel, Log: slog.New(slog.NewTextHandler(o.errOut, &slog.HandlerOptions{Level: level(f.logLevel)})),
	})
	told()
	group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// controlArgs is the command line of the control process.
func (o *options) controlArgs(self string, f upFlags) ([]string, error) {
	data, err := filepath.Abs(o.dataDir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	argv := []string{self, "control", "--data", data, "--log-level", f.logLevel}
	if f.certLifetime > 0 {
		argv = append(argv, "--cert-lifetime", f.certLifetime.String())
	}
	for _, path := range f.files {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("manifests: %w", err)
		}
		argv = append(argv, "-f", abs)
	}
	return argv, nil
}

// programs finds this program, and lateen-proxy and lateen-node beside it.
// Without a lateen-node this program plays its roles, which costs memory alone.
func programs() (self, proxy, node string, err error) {
	self, err = os.Executable()
	if err != nil {
		return "", "", "", fmt.Errorf("find the running program: %w", err)
	}
	if proxy, err = beside(self, "lateen-proxy"); err != nil {
		return "", "", "", fail(exitFailed, "build the programs with make; they belong into one folder", "find lateen-proxy beside %s: %w", self, err)
	}
	if node, err = beside(self, "lateen-node"); err != nil {
		node = self
	}
	return self, proxy, node, nil
}

// beside finds the program name in the folder of self, then in PATH.
func beside(self, name string) (string, error) {
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return exec.LookPath(name)
}

func level(name string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return slog.LevelInfo
	}
	return l
}

func printEvent(w io.Writer, e local.Event) {
	subject := e.Name
	if e.Namespace != "" {
		subject += "." + e.Namespace
	}
	mark := ""
	if e.Error {
		mark = "error: "
	}
	after := ""
	if e.Kind == "ready" {
		after = afterReady
	}
	fmt.Fprintf(w, "  %-10s %-40s %s%s\n%s", e.Kind, subject, mark, e.Message, after)
}

// afterReady is what people want to know once everything runs.
const afterReady = `
  Try next:  lateen status    lateen trace ls    lateen proxy config route POD --why
  Ctrl-C stops everything. Save a watched file and traffic follows.
`

// upDetached starts the same command without --detach in a session of its own
// and waits until its node says that everything is ready.
func (o *options) upDetached(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the running program: %w", err)
	}
	args := []string{}
	for _, a := range os.Args[1:] {
		if a != "--detach" && a != "--detach=true" {
			args = append(args, a)
		}
	}
	if err := os.MkdirAll(o.dataDir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(o.dataDir, "up.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return o.awaitReady(ctx, ended, log.Name())
}

// readyLimit is how long --detach waits for every pod.
const readyLimit = 60 * time.Second

func (o *options) awaitReady(ctx context.Context, ended <-chan error, logName string) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	client := local.NewClient(o.dataDir)
	for {
		select {
		case <-ended:
			text, _ := os.ReadFile(logName)
			return fail(exitFailed, "", "it ended at once:\n%s", strings.TrimSpace(string(text)))
		case <-ctx.Done():
			return fail(exitUnreachable, "see "+logName+" and lateen status", "not everything was ready after %v", readyLimit)
		case <-time.After(50 * time.Millisecond):
		}
		pods, err := client.Pods(ctx)
		if err != nil || len(pods) == 0 {
			continue
		}
		ready := true
		for _, p := range pods {
			ready = ready && p.Ready
		}
		if ready {
			fmt.Fprintf(o.out, "%s ready; stop with: lateen down --data %s\n", plural(len(pods), "pod"), o.dataDir)
			return nil
		}
	}
}

func newDown(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "Stop the running mesh",
		Example: "  lateen down\n  lateen down --data /tmp/mesh",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.explainNode(local.NewClient(o.dataDir).Down(cmd.Context()))
		},
	}
}

// explainNode gives an error of the node's socket its exit code and hint.
func (o *options) explainNode(err error) error {
	if errors.Is(err, local.ErrNotRunning) {
		return &failure{code: exitUnreachable, err: err, hint: "start one with \"lateen up -f PATH\", or name its data directory with --data"}
	}
	return err
}

func newControl(o *options) *cobra.Command {
	var c app.ControlOptions
	var logLevel string
	cmd := &cobra.Command{
		Use:   "control",
		Short: "The control process of the local cluster; started by lateen up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.DataDir = o.dataDir
			c.Log = slog.New(slog.NewTextHandler(o.errOut, &slog.HandlerOptions{Level: level(logLevel)}))
			return app.Control(cmd.Context(), c)
		},
	}
	cmd.Flags().StringArrayVarP(&c.Paths, "filename", "f", nil, "manifests to watch")
	cmd.Flags().DurationVar(&c.CertLifetime, "cert-lifetime", 0, "lifetime of workload certificates")
	cmd.Flags().StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}
