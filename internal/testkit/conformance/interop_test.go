//go:build linux

package conformance

import (
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"lateen.dev/lateen/internal/bootstrap"
)

// interopCases are those of gRPC's interoperability tests that need no credentials
// of a cloud.
var interopCases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
	"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response",
	"status_code_and_message", "special_status_message", "custom_metadata",
	"unimplemented_method", "unimplemented_service",
}

// TestInterop_everyCasePasses sends gRPC's interoperability tests through one
// proxy, and through two that speak mTLS with each other.
func TestInterop_everyCasePasses(t *testing.T) {
	client, program := judge(t, interopClient), judge(t, interopServer)
	app := freePort(t)
	cmd := exec.Command(program, "--port", strconv.Itoa(int(app.Port())))
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	wait(t, "interop server", func() error {
		c, err := net.Dial("tcp", app.String())
		if err == nil {
			c.Close()
		}
		return err
	})
	p := newPlane(t)

	one := freePort(t)
	s := newSite(t)
	s.cluster("app", app, true, nil)
	s.listen("one", one, "app", nil)
	direct := launch(t, p, bootstrap.Router, "gateway")
	p.push(t, direct.node, s.all)

	in, out := freePort(t), freePort(t)
	s = newSite(t)
	s.cluster("app", app, true, nil)
	s.listen("in", in, "app", meshServer())
	callee := launch(t, p, bootstrap.Sidecar, "callee")
	p.push(t, callee.node, s.all)
	s = newSite(t)
	s.cluster("mesh", in, true, meshClient())
	s.listen("out", out, "mesh", nil)
	caller := launch(t, p, bootstrap.Sidecar, "caller")
	p.push(t, caller.node, s.all)

	for _, x := range []*proxy{direct, callee, caller} {
		x.await(t)
	}
	for _, way := range []struct {
		name string
		at   netip.AddrPort
	}{{"one proxy", one}, {"two proxies with mTLS", out}} {
		t.Run(way.name, func(t *testing.T) { runInterop(t, client, way.at) })
	}
}

func runInterop(t *testing.T, client string, at netip.AddrPort) {
	passed := 0
	for _, name := range interopCases {
		text, err := run(t, 30*time.Second, client, "--server_host", at.Addr().String(),
			"--server_port", strconv.Itoa(int(at.Port())), "--test_case", name)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
			continue
		}
		passed++
	}
	t.Logf("gRPC interop v1.85.0: %d of %d", passed, len(interopCases))
}
