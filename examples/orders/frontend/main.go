// Command frontend is the first service of the orders example: it asks
// user-service who orders and order-service to place the order.
package main

import (
	"log/slog"
	"net/http"
	"os"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"lateen.dev/lateen/examples/orders/service"
)

type user struct {
	UserID string `json:"user_id"`
}

type order struct {
	OrderID string `json:"order_id"`
	Version string `json:"order_version"`
}

type answer struct {
	OrderID string `json:"order_id"`
	UserID  string `json:"user_id"`
	Version string `json:"order_version"`
	Status  string `json:"status"`
}

func main() {
	client := service.NewClient()
	routes := http.NewServeMux()
	routes.HandleFunc("GET /order", func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		var u user
		if err := client.Call(ctx, http.MethodGet, "http://user-service:8080/api/user", nil, &u); err != nil {
			service.Fail(w, "user service unavailable", err)
			return
		}
		trace.SpanFromContext(ctx).SetAttributes(attribute.String("orders.user_id", u.UserID))
		var o order
		if err := client.Call(ctx, http.MethodPost, "http://order-service:8080/api/order", u, &o); err != nil {
			service.Fail(w, "order service unavailable", err)
			return
		}
		service.Reply(w, answer{OrderID: o.OrderID, UserID: u.UserID, Version: o.Version, Status: "success"})
	})
	if err := service.Run("frontend", ":8080", routes); err != nil {
		slog.Error("frontend", "error", err)
		os.Exit(1)
	}
}
