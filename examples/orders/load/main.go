// Command load is the load generator of the orders example: it asks for
// TARGET_URL RATE times a second until it is stopped.
package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	rate, err := strconv.ParseFloat(os.Getenv("RATE"), 64)
	if err != nil || rate <= 0 || rate > 1000 {
		rate = 5
	}
	url := os.Getenv("TARGET_URL")
	client := &http.Client{Timeout: 5 * time.Second}
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	var sent, failed int
	for {
		select {
		case <-ctx.Done():
			slog.Info("load ends", "sent", sent, "failed", failed)
			return
		case <-tick.C:
			sent++
			if err := ask(ctx, client, url); err != nil && ctx.Err() == nil {
				failed++
				slog.Warn("request", "error", err)
			}
		}
	}
}

func ask(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.Body.Close()
}
