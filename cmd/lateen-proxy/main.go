// Command lateen-proxy is the data plane of Lateen: sidecar and gateway. It is
// told everything by one bootstrap message and is started by the local cluster
// or an injected pod, seldom by hand.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/agent"
	"lateen.dev/lateen/internal/version"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lateen-proxy:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("lateen-proxy", flag.ExitOnError)
	file := flags.String("bootstrap", "", "read the bootstrap message from this `file`")
	fd := flags.Int("bootstrap-fd", -1, "read it from this open `descriptor`")
	profile := flags.String("cpuprofile", "", "write a CPU profile to this `file` until the end, for development")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: lateen-proxy --bootstrap FILE | --bootstrap-fd N | version")
		flags.PrintDefaults()
	}
	_ = flags.Parse(args) // ExitOnError
	if flags.Arg(0) == "version" {
		fmt.Println("lateen-proxy", version.Version)
		return nil
	}
	if *profile != "" {
		stop, err := startProfile(*profile)
		if err != nil {
			return err
		}
		defer stop()
	}
	in := os.NewFile(uintptr(*fd), "bootstrap")
	if *file != "" {
		var err error
		if in, err = os.Open(*file); err != nil {
			return fmt.Errorf("read bootstrap: %w", err)
		}
	}
	data, err := io.ReadAll(in) // a nil file answers with an error
	if err != nil {
		return fmt.Errorf("read bootstrap: %w (give --bootstrap FILE or --bootstrap-fd N)", err)
	}
	in.Close()
	b, err := bootstrap.Parse(data)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	level := &slog.LevelVar{}
	level.Set(agent.Level(b))
	return agent.Run(ctx, b, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})), level)
}

// startProfile samples where CPU time goes until stop is called.
func startProfile(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("write CPU profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, fmt.Errorf("write CPU profile: %w", err)
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }, nil
}
