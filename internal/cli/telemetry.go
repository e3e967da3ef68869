package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/telemetry/hub"
	"lateen.dev/lateen/internal/telemetry/query"
	"lateen.dev/lateen/internal/telemetry/store"
	"lateen.dev/lateen/internal/version"
)

func newTrace(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "trace", Short: "Find requests and look into them", Aliases: []string{"traces"},
		Example: "  lateen trace ls\n  lateen trace ls --error\n  lateen trace show 4f1c2a",
	}
	cmd.AddCommand(newTraceList(o), newTraceShow(o))
	return cmd
}

func newTraceList(o *options) *cobra.Command {
	var f store.Filter
	var since time.Duration
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List traces, newest first",
		Example: "  lateen trace ls\n  lateen trace ls --service frontend --min 100ms\n  lateen trace ls --error --since 10m",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since > 0 {
				f.Since = time.Now().Add(-since)
			}
			list, err := ask(cmd.Context(), o, func(ctx context.Context, c *api.Client) (*query.TraceList, error) {
				return (&query.Client{HTTP: c.HTTP()}).List(ctx, f)
			})
			if err != nil {
				return err
			}
			var failed error
			err = o.print(list, func(w io.Writer) { failed = query.RenderList(w, list) })
			return errors.Join(err, failed)
		},
	}
	cmd.Flags().StringVar(&f.Service, "service", "", "only traces in which this service took part")
	cmd.Flags().DurationVar(&f.Min, "min", 0, "only traces that took at least this long")
	cmd.Flags().BoolVar(&f.Error, "error", false, "only traces with a failed span")
	cmd.Flags().DurationVar(&since, "since", 0, "only traces that began within this time")
	cmd.Flags().IntVar(&f.Limit, "limit", 20, "at most this many")
	return cmd
}

func newTraceShow(o *options) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show one trace as a waterfall",
		Example: "  lateen trace show 4f1c2a\n  lateen trace show 4f1c2a --limit 0\n  lateen trace show 4f1c2a -o json",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: o.live(0, traceIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			trace, err := ask(cmd.Context(), o, func(ctx context.Context, c *api.Client) (*query.Trace, error) {
				return (&query.Client{HTTP: c.HTTP()}).Get(ctx, args[0])
			})
			if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrAmbiguous) {
				return fail(exitFailed, "lateen trace ls lists traces; ids may be shortened while they are unique", "%w", err)
			}
			if err != nil {
				return err
			}
			var failed error
			err = o.print(trace, func(w io.Writer) { failed = query.RenderTrace(w, trace, limit) })
			return errors.Join(err, failed)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "print at most this many spans; 0 prints all")
	return cmd
}

func newCollector(o *options) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "collector --config FILE…",
		Short: "Run an OpenTelemetry Collector configuration",
		Long: `Run an OpenTelemetry Collector configuration with the embedded Collector. Retired names
(jaeger, logging, opencensus) are accepted with a warning that says the modern spelling.`,
		Example: "  lateen collector --config otel.yaml\n  lateen collector --config base.yaml --config extra.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return hub.RunCollector(cmd.Context(), hub.CollectorOptions{
				Files: files, Tee: os.Getenv(hub.EndpointEnv), Version: version.Version,
				Log: slog.New(slog.NewTextHandler(o.errOut, nil)),
			})
		},
	}
	cmd.Flags().StringArrayVar(&files, "config", nil, "collector configuration; several are merged")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}
