package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lateen.dev/lateen/internal/bootstrap"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
)

// TestServer_recordsEveryOutcome sends good, refused and broken traffic through
// a server with real recorders and reads its access log.
func TestServer_recordsEveryOutcome(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	boot := &bootstrap.Bootstrap{Role: bootstrap.Sidecar, Capture: bootstrap.CaptureNone, Concurrency: 2, Node: bootstrap.Node{ID: "sidecar~test"}}
	set := record.NewSet(record.Options{Identity: record.IdentityOf(boot, ""), Log: slog.New(slog.DiscardHandler)})
	s, err := NewServer(Options{Bootstrap: boot, Recorder: set})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	logs := []*snapshot.AccessLog{{Path: path, Format: "%REQ(:METHOD)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_CLUSTER_RAW%\n"}}
	app, echo, addr, raw := backend(t), echoTCP(t, ""), freeAddr(t), freeAddr(t)
	c := newConfig(t)
	c.cluster("app", app)
	c.cluster("echo", echo)
	m := c.manager("app")
	m.AccessLogs = logs
	c.listen(addr, httpChain(m))
	tc := tcpChain("echo")
	tc.TCP.AccessLogs = logs
	c.listen(raw, tc)
	apply(t, s, c)

	resp, err := http.Get("http://" + addr + "/x")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	bad := dialTCP(t, addr)
	fmt.Fprintf(bad, "GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
	if answer, _ := io.ReadAll(bad); !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		t.Fatalf("a smuggling attempt got %q", answer)
	}
	tcp := dialTCP(t, raw)
	_, _ = io.WriteString(tcp, "hi")
	_ = tcp.CloseWrite()
	if got, err := io.ReadAll(tcp); err != nil || string(got) != "hi" {
		t.Fatalf("%q %v", got, err)
	}
	want := []string{
		"GET HTTP/1.1 200 - via_upstream app", "400 DPE http1.codec_error", "- - 0 - - echo",
	}
	var text string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		set.Flush(context.Background())
		b, _ := os.ReadFile(path)
		text = string(b)
		missing := false
		for _, w := range want {
			missing = missing || !strings.Contains(text, w)
		}
		if !missing {
			return
		}
	}
	t.Fatalf("the access log says\n%swant lines with %q", text, want)
}
