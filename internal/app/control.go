// Package app composes the processes of lateen out of its planes. It is the
// only package that imports both the control plane and telemetry, and only the
// command line imports it. What runs where can be read off here; decisions live
// in the packages it wires together.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"time"

	"lateen.dev/lateen/internal/control"
	"lateen.dev/lateen/internal/local/inherit"
	"lateen.dev/lateen/internal/telemetry/hub"
	"lateen.dev/lateen/internal/telemetry/query"
	"lateen.dev/lateen/internal/telemetry/store"
	"lateen.dev/lateen/internal/version"
)

// metricsAddress serves what the hub receives of metrics in Prometheus text, on
// the control process's own loopback.
const metricsAddress = "127.0.0.1:8889"

// ControlOptions configure the control process of the local cluster.
type ControlOptions struct {
	DataDir string
	// Paths are the manifests to watch.
	Paths []string
	// CertLifetime of SVIDs; 0 means 24 h.
	CertLifetime time.Duration
	Log          *slog.Logger
}

// Control runs the control process: control plane, certificate authority, hub
// and store, on the sockets it inherited from the node. It returns when ctx ends
// or one of them fails.
func Control(ctx context.Context, o ControlOptions) error {
	debug.SetGCPercent(50) // a control process idles; memory matters more than speed
	sockets, err := inherit.Listeners()
	if err != nil {
		return err
	}
	spans, err := store.Open(filepath.Join(o.DataDir, "telemetry.db"), store.Options{})
	if err != nil {
		return fmt.Errorf("open the store of traces: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	go func() {
		failed <- hub.Run(ctx, hub.Options{
			GRPC:           join(sockets[inherit.HubGRPC], sockets[inherit.OTLPGRPC]),
			HTTP:           join(sockets[inherit.HubHTTP], sockets[inherit.OTLPHTTP]),
			MetricsAddress: metricsAddress,
			Store:          spans, Version: version.Version, Log: o.Log.With("part", "hub"),
		})
	}()
	go func() {
		failed <- control.Run(ctx, control.Options{
			DataDir: o.DataDir, Paths: o.Paths,
			XDS: sockets[inherit.XDS], Plain: sockets[inherit.XDSPlain], API: sockets[inherit.API],
			ClusterID: "Kubernetes", Version: version.Version, CertLifetime: o.CertLifetime,
			ServiceCIDRs: inherit.ServiceCIDRs(), AwaitLocal: true,
			Mounts: query.Mounts(spans, time.Now),
			Log:    o.Log.With("part", "control"),
		})
	}()
	first := <-failed
	cancel()
	second := <-failed
	return errors.Join(first, second, spans.Close())
}
