// Command order-service is the third service of the orders example: it places
// orders and says which version of itself did so. VERSION comes from the pod's
// label by the downward API.
package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"

	"lateen.dev/lateen/examples/orders/service"
)

func main() {
	version, host := os.Getenv("VERSION"), os.Getenv("HOSTNAME")
	var placed atomic.Int64
	routes := http.NewServeMux()
	routes.HandleFunc("POST /api/order", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			UserID string `json:"user_id"`
		}
		if err := service.Read(r, &in); err != nil || in.UserID == "" {
			http.Error(w, "want a JSON body with user_id", http.StatusBadRequest)
			return
		}
		service.Reply(w, map[string]string{
			"order_id":      fmt.Sprintf("%s-%d", host, placed.Add(1)),
			"order_version": version,
		})
	})
	if err := service.Run("order-service", ":8080", routes); err != nil {
		slog.Error("order-service", "error", err)
		os.Exit(1)
	}
}
