// Package inherit hands listening sockets to the control process. The node opens
// them once and keeps them, so that a client that connects while the control
// process restarts waits a moment instead of being refused.
package inherit

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Names of the sockets.
const (
	// API is the unix socket of the control API.
	API = "api"
	// XDS is the node's address for ADS and the certificate authority over mTLS
	// (15012); XDSPlain is 15010 on the node's loopback.
	XDS      = "xds"
	XDSPlain = "xds-plain"
	// OTLPGRPC and OTLPHTTP are 4317 and 4318 on the host's loopback; HubGRPC and
	// HubHTTP are the same ports on the node's address, for pods and proxies.
	OTLPGRPC = "otlp-grpc"
	OTLPHTTP = "otlp-http"
	HubGRPC  = "hub-grpc"
	HubHTTP  = "hub-http"
)

// ServiceCIDRs are the ranges that the control process gives services addresses
// from. They must not overlap the pods' 10.77.0.0/16 and fd77::/64.
func ServiceCIDRs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16"), netip.MustParsePrefix("fd78::/64")}
}

// variable carries the sockets: name=descriptor, separated by commas.
const variable = "LATEEN_LISTENERS"

// Environ returns the environment entry for sockets that a child inherits: names
// by descriptor number.
func Environ(fds map[string]int) string {
	var parts []string
	for name, fd := range fds {
		parts = append(parts, name+"="+strconv.Itoa(fd))
	}
	slices.Sort(parts)
	return variable + "=" + strings.Join(parts, ",")
}

// Listeners returns the sockets this process inherited, by name. The map is empty
// where none were handed over. It must be called once, early: the descriptors
// are taken over and made close-on-exec.
func Listeners() (map[string]net.Listener, error) {
	out := map[string]net.Listener{}
	value := os.Getenv(variable)
	if err := os.Unsetenv(variable); err != nil {
		return nil, fmt.Errorf("inherited sockets: %w", err)
	}
	var errs []error
	for part := range strings.SplitSeq(value, ",") {
		name, num, ok := strings.Cut(part, "=")
		fd, err := strconv.Atoi(num)
		if !ok || err != nil {
			if part != "" {
				errs = append(errs, fmt.Errorf("inherited sockets: %q is not name=descriptor", part))
			}
			continue
		}
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), name)
		l, err := net.FileListener(f) // duplicates
		f.Close()
		if err != nil {
			errs = append(errs, fmt.Errorf("inherited socket %s: %w", name, err))
			continue
		}
		out[name] = l
	}
	return out, errors.Join(errs...)
}
