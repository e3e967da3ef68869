// Command lateen is the command line, the control plane, the certificate
// authority, the telemetry hub and the one-machine cluster of Lateen.
package main

import (
	"os"

	"lateen.dev/lateen/internal/cli"
	"lateen.dev/lateen/internal/local"
)

func main() {
	if handled, code := local.HiddenRole(os.Args); handled {
		os.Exit(code)
	}
	os.Exit(cli.Main(os.Args[1:]))
}
