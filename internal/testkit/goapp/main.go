// Command goapp is the application of the end-to-end tests: a plain service
// with OpenTelemetry that knows nothing of the mesh. It says which pod answered.
// "goapp call [flags] URL" is its client, run inside a caller's pod; "goapp
// without WHAT PROGRAM…" runs a program on a lesser machine.
package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"

	"lateen.dev/lateen/examples/orders/service"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "call" {
		if err := call(os.Args[2:]); err != nil {
			slog.Error("call", "error", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 3 && os.Args[1] == "without" {
		slog.Error("without", "error", without(os.Args[2], os.Args[3:]))
		os.Exit(1)
	}
	if err := service.Run("go-app", ":8080", routes(os.Getenv("HOSTNAME"))); err != nil {
		slog.Error("go-app", "error", err)
		os.Exit(1)
	}
}

func routes(host string) *http.ServeMux {
	var served atomic.Int64
	mux := http.NewServeMux()
	hello := func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		service.Reply(w, map[string]string{"message": "Hello from Istio!", "pod": host})
	}
	mux.HandleFunc("/{$}", hello)
	mux.HandleFunc("/api/", hello)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = io.WriteString(w, "# TYPE goapp_requests_total counter\n")
		_, _ = fmt.Fprintf(w, "goapp_requests_total %d\n", served.Load())
	})
	return mux
}
