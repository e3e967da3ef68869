// Command user-service is the second service of the orders example: it knows
// the users.
package main

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"

	"lateen.dev/lateen/examples/orders/service"
)

func main() {
	routes := http.NewServeMux()
	routes.HandleFunc("GET /api/user", func(w http.ResponseWriter, _ *http.Request) {
		service.Reply(w, map[string]string{"user_id": fmt.Sprintf("user-%d", 1+rand.IntN(100))})
	})
	if err := service.Run("user-service", ":8080", routes); err != nil {
		slog.Error("user-service", "error", err)
		os.Exit(1)
	}
}
