package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lateen.dev/lateen/internal/local"
)

func newExec(o *options) *cobra.Command {
	var container string
	cmd := &cobra.Command{
		Use:     "exec POD -- COMMAND…",
		Short:   "Run a command in a pod's namespaces",
		Example: "  lateen exec frontend -- curl -s http://user-service:8080/api/user\n  lateen exec order-service-v1 -- env\n  lateen exec frontend -c app -- sh",
		Args:    cobra.MinimumNArgs(2),

		ValidArgsFunction: o.live(0, podNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := local.NewClient(o.dataDir).Exec(cmd.Context(), args[0], container, args[1:], os.Stdin, os.Stdout, os.Stderr)
			if err != nil {
				return o.explainNode(err)
			}
			if code != 0 {
				return silent(code)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "container; the first one if not given")
	return cmd
}

func newLogs(o *options) *cobra.Command {
	var container string
	var follow bool
	cmd := &cobra.Command{
		Use:     "logs POD",
		Short:   "Print what a pod's program or its proxy has written",
		Example: "  lateen logs frontend\n  lateen logs frontend -c proxy -f\n  lateen logs opentelemetry-collector.observability",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: o.live(0, podNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := local.NewClient(o.dataDir).Logs(cmd.Context(), args[0], container, follow, o.out)
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return o.explainNode(err)
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "app, proxy or a container's name (default app; a gateway's is its proxy)")
	completeFlag(cmd, "container", words("app", "proxy"))
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing until Ctrl-C")
	return cmd
}

func newPortForward(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "port-forward POD [LOCAL:]PORT",
		Short:   "Open a port of a pod's loopback on this machine",
		Example: "  lateen port-forward frontend 8080\n  lateen port-forward frontend 9000:15000\n  lateen port-forward opentelemetry-collector.observability 8889",
		Args:    cobra.ExactArgs(2),

		ValidArgsFunction: o.live(0, podNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			here, there, err := parsePorts(args[1])
			if err != nil {
				return err
			}
			if _, err := local.NewClient(o.dataDir).Pod(cmd.Context(), args[0]); err != nil {
				return o.explainNode(err)
			}
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(here)))
			if err != nil {
				return fail(exitFailed, "choose another port: LOCAL:PORT", "open the local port: %w", err)
			}
			fmt.Fprintf(o.errOut, "forwarding %s to port %d of %s\n", l.Addr(), there, args[0])
			err = local.NewClient(o.dataDir).PortForward(cmd.Context(), l, args[0], there)
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return o.explainNode(err)
		},
	}
}

// parsePorts reads PORT or LOCAL:PORT; LOCAL may be 0 for any free port.
func parsePorts(text string) (here, there int, err error) {
	left, right, ok := strings.Cut(text, ":")
	if !ok {
		right = left
	}
	there, err = strconv.Atoi(right)
	if err == nil {
		here, err = strconv.Atoi(left)
	}
	if err != nil || there < 1 || there > 65535 || here < 0 || here > 65535 {
		return 0, 0, fail(exitUsage, "for example 8080 or 9000:8080", "%q is not [LOCAL:]PORT", text)
	}
	return here, there, nil
}
