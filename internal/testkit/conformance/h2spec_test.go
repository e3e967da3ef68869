//go:build linux

package conformance

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/bootstrap"
)

// h2specCases is how many cases h2spec 2.2.1 has without the strict ones.
const h2specCases = 145

var h2specSummary = regexp.MustCompile(`(\d+) tests?, (\d+) passed, (\d+) skipped, (\d+) failed`)

// TestH2spec_everyCasePasses lets h2spec 2.2.1 judge HTTP/2 with prior knowledge
// and over TLS, of a sidecar and of a gateway.
func TestH2spec_everyCasePasses(t *testing.T) {
	h2spec := judge(t, h2specProgram)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "hello from behind the proxy")
	}))
	t.Cleanup(app.Close)
	p := newPlane(t)
	for _, role := range []bootstrap.Role{bootstrap.Sidecar, bootstrap.Router} {
		s := newSite(t)
		plain, secure := freePort(t), freePort(t)
		s.cluster("app", netip.MustParseAddrPort(app.Listener.Addr().String()), false, nil)
		s.listen("plain", plain, "app", nil)
		s.listen("secure", secure, "app", s.simpleTLS(p))
		x := launch(t, p, role, "web")
		p.push(t, x.node, s.all)
		x.await(t)
		t.Run(string(role)+" h2c", func(t *testing.T) {
			t.Parallel()
			runH2spec(t, h2spec, plain)
		})
		t.Run(string(role)+" TLS", func(t *testing.T) {
			t.Parallel()
			runH2spec(t, h2spec, secure, "--tls", "--insecure")
		})
	}
}

func runH2spec(t *testing.T, h2spec string, at netip.AddrPort, more ...string) {
	out, err := run(t, 3*time.Minute, h2spec, append([]string{"--host", at.Addr().String(), "--port", fmt.Sprint(at.Port())}, more...)...)
	m := h2specSummary.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no summary (%v):\n%s", err, out)
	}
	t.Logf("h2spec 2.2.1: %s", m[0])
	if want := fmt.Sprint(h2specCases); m[1] != want || m[2] != want {
		_, failures, _ := strings.Cut(out, "Failures:")
		t.Errorf("%s, want %s of %s (%v)\n%s", m[0], want, want, err, failures)
	}
}
