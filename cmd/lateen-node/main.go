// Command lateen-node plays the parts of the one-machine cluster that sit in
// every pod: the node, its containers' first process, an exec into one. It is
// started by lateen up, never by hand. It is a program of its own so that a
// pod pays neither for the proxy's code nor the proxy for netlink and nftables.
package main

import (
	"fmt"
	"os"

	"lateen.dev/lateen/internal/local/node"
	"lateen.dev/lateen/internal/version"
)

func main() {
	if handled, code := node.HiddenRole(os.Args); handled {
		os.Exit(code)
	}
	if len(os.Args) == 2 && os.Args[1] == "version" {
		fmt.Println("lateen-node", version.Version)
		return
	}
	fmt.Fprintln(os.Stderr, "lateen-node is started by lateen up; it has no use of its own")
	os.Exit(2)
}
