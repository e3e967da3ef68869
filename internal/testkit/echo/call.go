package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
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
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 4, DialContext: dialer(c), Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(!c.HTTP2)
	transport.Protocols.SetUnencryptedHTTP2(c.HTTP2)
	client := &http.Client{
		Timeout:       20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     transport,
	}
	results := make([]scenario.Result, c.Times)
	errs := make([]error, c.Times)
	var sent sync.WaitGroup
	for i := range results {
		sent.Go(func() { results[i], errs[i] = send(client, c) })
		if !c.AtOnce {
			sent.Wait()
		}
		if c.Fresh {
			client.CloseIdleConnections()
		}
	}
	sent.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}

// dialer connects as the call wants: to an address of its own, or within one
// family.
func dialer(c scenario.Call) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if c.Address != "" {
			address = c.Address
		}
		if c.Family != 0 {
			network = fmt.Sprintf("tcp%d", c.Family)
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}

// target is the URL's path exactly as written, for requests that
// must not be cleaned on their way out. It is "" for what net/http would read as
// an absolute form.
func target(rawURL string) string {
	_, rest, _ := strings.Cut(rawURL, "://")
	rest, _, _ = strings.Cut(rest, "?")
	i := strings.IndexByte(rest, '/')
	if i < 0 || strings.HasPrefix(rest[i:], "//") {
		return ""
	}
	return rest[i:]
}

func send(client *http.Client, c scenario.Call) (scenario.Result, error) {
	method, content := c.Method, []byte(c.Body)
	if c.GRPC() {
		method, content = http.MethodPost, scenario.GRPCFrame(content)
	}
	req, err := http.NewRequest(method, c.URL, bytes.NewReader(content))
	if err != nil {
		return scenario.Result{}, fmt.Errorf("make request: %w", err)
	}
	if c.GRPC() {
		req.Header.Set("Content-Type", scenario.GRPCType)
		req.Header.Set("Te", "trailers")
	}
	req.URL.Opaque = target(c.URL)
	mark := "scenario/" + rand.Text()
	req.Header.Set("User-Agent", mark)
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
		return scenario.Result{Mark: mark, Err: transportError(err), Took: time.Since(start)}, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	_ = resp.Body.Close()
	r := scenario.Result{
		Mark: mark, Status: resp.StatusCode, Body: string(body), Took: time.Since(start), Header: scenario.LowerKeys(resp.Header),
	}
	if err != nil {
		r.Err = transportError(err)
	}
	if r.GRPC = resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status"); r.GRPC != "" {
		r.Body = string(scenario.GRPCMessage(body))
	}
	r.ReadSeen()
	return r, nil
}

// transportError reduces an error to the words scenarios use.
func transportError(err error) string {
	var timeout net.Error
	var unknown *net.DNSError
	switch {
	case errors.As(err, &unknown) && unknown.IsNotFound:
		return "no such host"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "reset"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}
