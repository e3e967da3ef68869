//go:build linux

package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/bootstrap"
)

// attacked starts a proxy of a role with a plain and a TLS port in front of an
// application.
func attacked(t *testing.T, role bootstrap.Role) (plain, secure netip.AddrPort) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte("a page that is worth reading slowly\n"), 4000)) // a caller that left
	}))
	t.Cleanup(app.Close)
	p, s := newPlane(t), newSite(t)
	plain, secure = freePort(t), freePort(t)
	s.cluster("app", netip.MustParseAddrPort(app.Listener.Addr().String()), false, nil)
	s.listen("plain", plain, "app", nil)
	if role == bootstrap.Router {
		s.listen("secure", secure, "app", s.simpleTLS(p))
	} else {
		s.listen("secure", secure, "app", meshServer())
	}
	x := launch(t, p, role, "web")
	p.push(t, x.node, s.all)
	x.await(t)
	return plain, secure
}

var (
	colours       = regexp.MustCompile(`\x1b\[[0-9;]*[A-Za-z]`)
	slowAvailable = regexp.MustCompile(`service available:\s*(YES|NO)`)
)

// TestSlowhttptest_staysAvailable lets slowhttptest hold 300 connections with slow
// headers, slow bodies and slow reads while its probe asks for answers within 3 s,
// and asks that it got one each time. A gateway must have closed every connection
// whose head never ends a minute after it was opened.
func TestSlowhttptest_staysAvailable(t *testing.T) {
	program := judge(t, installed("slowhttptest"))
	for _, role := range []bootstrap.Role{bootstrap.Sidecar, bootstrap.Router} {
		plain, _ := attacked(t, role)
		url := "http://" + plain.String() + "/"
		for name, args := range map[string][]string{
			"headers": {"-H", "-i", "2"},
			"body":    {"-B", "-i", "2", "-s", "8192"},
			"read":    {"-X", "-w", "10", "-y", "20", "-n", "2", "-z", "32", "-k", "3"},
		} {
			t.Run(string(role)+" "+name, func(t *testing.T) {
				t.Parallel()
				length := "12"
				closes := role == bootstrap.Router && name == "headers"
				if closes {
					length = "90"
				}
				args := append(args, "-c", "300", "-r", "150", "-l", length, "-p", "3", "-v", "1", "-u", url)
				out, err := run(t, 3*time.Minute, program, args...)
				out = colours.ReplaceAllString(out, "")
				answers := slowAvailable.FindAllStringSubmatch(out, -1)
				if len(answers) == 0 {
					t.Fatalf("no word of availability (%v):\n%s", err, out)
				}
				for _, a := range answers {
					if a[1] != "YES" {
						t.Fatalf("the service was away:\n%s", out)
					}
				}
				if closes && !strings.Contains(out, "No open connections left") {
					t.Errorf("slow heads are still open after %s s:\n%s", length, out)
				}
				t.Logf("slowhttptest: service available %d times of %d", len(answers), len(answers))
			})
		}
	}
}

// finding is one line of testssl.sh's report.
type finding struct{ ID, Severity, Finding string }

// excused are the findings that say something of the tests' own certificate.
var excused = map[string]string{
	"cert_trust":                 "the root is the tests' own",
	"cert_chain_of_trust":        "the root is the tests' own",
	"cert_expirationStatus":      "it is valid for an hour",
	"cert_notAfter":              "it is valid for an hour",
	"cert_revocation":            "its authority revokes nothing",
	"cert_crlDistributionPoints": "its authority revokes nothing",
	"cert_ocspURL":               "its authority revokes nothing",
}

// TestTestssl_findsNothingAboveLow lets testssl.sh look at a gateway's TLS port and
// at one of mesh TLS.
func TestTestssl_findsNothingAboveLow(t *testing.T) {
	program := judge(t, installed("testssl"))
	for _, role := range []bootstrap.Role{bootstrap.Router, bootstrap.Sidecar} {
		_, secure := attacked(t, role)
		t.Run(string(role), func(t *testing.T) {
			t.Parallel()
			report := filepath.Join(t.TempDir(), "report.json")
			out, err := run(t, 3*time.Minute, program, "--quiet", "--color", "0", "--warnings", "off", "--jsonfile", report,
				"--protocols", "--server-defaults", "--server-preference", "--std", "--fs", "--vulnerable", "localhost:"+strings.Split(secure.String(), ":")[1])
			data, readErr := os.ReadFile(report)
			var list []finding
			if e := errors.Join(readErr, json.Unmarshal(data, &list)); e != nil {
				t.Fatalf("no report: %v (%v)\n%s", e, err, out)
			}
			count := map[string]int{}
			for _, f := range list {
				count[f.Severity]++
				name, _, _ := strings.Cut(f.ID, " ")
				switch f.Severity {
				case "OK", "INFO", "LOW", "DEBUG":
				case "WARN": // a check that testssl.sh could not make, on a busy machine
					t.Logf("%s %s: %s", f.Severity, f.ID, f.Finding)
				default:
					if why := excused[name]; why != "" {
						t.Logf("%s %s: %s (%s)", f.Severity, f.ID, f.Finding, why)
						continue
					}
					t.Errorf("%s %s: %s", f.Severity, f.ID, f.Finding)
				}
			}
			if count["OK"] < 10 {
				t.Errorf("only %v findings: it did not look\n%s", count, out)
			}
			t.Logf("testssl.sh: %v", count)
		})
	}
}
