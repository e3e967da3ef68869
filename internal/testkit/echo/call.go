package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"lateen.dev/lateen/internal/testkit/scenario"
)

// call sends the requests of the scenario.Call in its argument and prints one
// scenario.Result for each as JSON. It runs inside the caller's pod.
func call(arg string) error {
	var c scenario.Call
	if err := json.Unmarshal([]byte(arg), &c); err != nil {
		return fmt.Errorf("read call: %w", err)
	}
	client := &http.Client{
		Timeout:       20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 4},
	}
	results := make([]scenario.Result, 0, c.Times)
	for range c.Times {
		r, err := send(client, c)
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}

func send(client *http.Client, c scenario.Call) (scenario.Result, error) {
	req, err := http.NewRequest(c.Method, c.URL, strings.NewReader(c.Body))
	if err != nil {
		return scenario.Result{}, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("User-Agent", "scenario")
	for _, h := range c.Headers {
		if strings.EqualFold(h[0], "host") {
			req.Host = h[1]
			continue
		}
		req.Header.Add(h[0], h[1])
	}
	start := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return scenario.Result{Err: transportError(err), Took: time.Since(start)}, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	_ = resp.Body.Close()
	r := scenario.Result{Status: resp.StatusCode, Body: string(body), Took: time.Since(start), Header: scenario.LowerKeys(resp.Header)}
	if err != nil {
		r.Err = transportError(err)
	}
	r.ReadSeen()
	return r, nil
}

// transportError reduces an error to the words scenarios use.
func transportError(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "reset"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}
