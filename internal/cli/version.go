package cli

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"lateen.dev/lateen/internal/version"
)

func newVersion(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  lateen version\n  lateen version -o json\n  lateen --version",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{
				"apiVersion": "lateen.dev/v1alpha1", "version": version.Version,
				"go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
			}
			return o.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "lateen %s (%s %s)\n", v["version"], v["go"], v["platform"])
			})
		},
	}
}
