package record

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// result is the outcome of one call.
type result struct {
	err      error
	retry    bool
	after    time.Duration // the server's wish, 0 for none
	rejected int64
	message  string
}

// transport sends one assembled request.
type transport interface {
	send(ctx context.Context, signal Signal, body []byte) result
	close()
}

// maxConnAge is the age after which a connection is renewed, so that a new
// endpoint of the destination gets its share.
const maxConnAge = 5 * time.Minute

// send makes one call. A connection is kept while it serves; after a failure
// the destination is looked up again.
func (s *sender) send(signal Signal, body []byte) result {
	if s.conn != nil && time.Since(s.connected) > maxConnAge {
		s.disconnect()
	}
	if s.conn == nil {
		t := Target{Address: s.e.opts.Hub}
		if s.dest.Cluster != "" {
			var err error
			if t, err = s.e.opts.Resolve(s.dest.Cluster); err != nil {
				return result{err: fmt.Errorf("resolve %s: %w", s.dest.Cluster, err), retry: true}
			}
		}
		c, err := s.e.connect(t, s.dest)
		if err != nil {
			return result{err: err, retry: true}
		}
		s.conn, s.connected = c, time.Now()
	}
	ctx, cancel := context.WithTimeout(s.e.ctx, s.e.opts.Timeout)
	defer cancel()
	r := s.conn.send(ctx, signal, body)
	if r.retry && r.after == 0 {
		s.disconnect()
	}
	return r
}

func (s *sender) disconnect() {
	s.conn.close()
	s.conn = nil
}

func (e *Exporter) connect(t Target, d Destination) (transport, error) {
	if d.Path != "" {
		return e.connectHTTP(t, d), nil
	}
	creds := insecure.NewCredentials()
	if t.TLS != nil {
		creds = credentials.NewTLS(t.TLS)
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return e.opts.Dial(ctx, "tcp", addr) }),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	}
	if d.Authority != "" {
		opts = append(opts, grpc.WithAuthority(d.Authority))
	}
	c, err := grpc.NewClient("passthrough:///"+t.Address, opts...)
	if err != nil {
		return nil, fmt.Errorf("OTLP client for %s: %w", t.Address, err)
	}
	return &grpcTransport{conn: c}, nil
}

// rawCodec passes bytes through: requests are encoded already, answers are
// looked at by hand.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (rawCodec) Name() string { return "proto" }

type grpcTransport struct {
	conn *grpc.ClientConn
}

func (g *grpcTransport) close() { g.conn.Close() }

var grpcMethods = [signalCount]string{
	Traces:  "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
	Logs:    "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
	Metrics: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}

func (g *grpcTransport) send(ctx context.Context, signal Signal, body []byte) result {
	var reply []byte
	err := g.conn.Invoke(ctx, grpcMethods[signal], &body, &reply)
	if err == nil {
		r := result{}
		r.rejected, r.message = partialSuccess(reply)
		return r
	}
	r := result{err: err}
	st := status.Convert(err)
	switch st.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss:
		r.retry = true
		r.after, _ = retryInfo(st)
	case codes.ResourceExhausted:
		// Only with RetryInfo does it mean "later" (OTLP/gRPC throttling).
		r.after, r.retry = retryInfo(st)
	}
	return r
}

// retryInfo finds google.rpc.RetryInfo among the details. It is read by hand:
// its Go package is not worth linking for one field.
func retryInfo(st *status.Status) (time.Duration, bool) {
	for _, d := range st.Proto().GetDetails() {
		if d.GetTypeUrl() != "type.googleapis.com/google.rpc.RetryInfo" {
			continue
		}
		var delay time.Duration
		walk(d.GetValue(), func(field int, v uint64, msg []byte) {
			if field != 1 {
				return
			}
			walk(msg, func(field int, v uint64, _ []byte) {
				switch field {
				case 1:
					delay += time.Duration(min(v, 3600)) * time.Second
				case 2:
					delay += time.Duration(min(v, 1e9))
				}
			})
		})
		return delay, true
	}
	return 0, false
}

// partialSuccess reads Export…ServiceResponse.partial_success.
func partialSuccess(reply []byte) (rejected int64, message string) {
	walk(reply, func(field int, _ uint64, msg []byte) {
		if field != 1 {
			return
		}
		walk(msg, func(field int, v uint64, text []byte) {
			switch field {
			case 1:
				rejected = int64(v)
			case 2:
				message = string(text)
			}
		})
	})
	return max(rejected, 0), message
}

// walk visits the fields of a protobuf message: v holds numbers, msg bytes. It
// stops at the first thing it cannot read.
func walk(b []byte, visit func(field int, v uint64, msg []byte)) {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return
		}
		b = b[n:]
		switch tag & 7 {
		case wireVarint:
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return
			}
			visit(int(tag>>3), v, nil)
			b = b[n:]
		case wireLen:
			l, n := binary.Uvarint(b)
			if n <= 0 || l > uint64(len(b)-n) {
				return
			}
			visit(int(tag>>3), 0, b[n:n+int(l)])
			b = b[n+int(l):]
		case wireI64, wireI32:
			w := 8
			if tag&7 == wireI32 {
				w = 4
			}
			if len(b) < w {
				return
			}
			b = b[w:]
		default:
			return
		}
	}
}

// httpTransport is OTLP/HTTP with protobuf bodies.
type httpTransport struct {
	client *http.Client
	url    string
	host   string
}

func (e *Exporter) connectHTTP(t Target, d Destination) transport {
	rt := &http.Transport{DialContext: e.opts.Dial, TLSClientConfig: t.TLS, MaxIdleConnsPerHost: 1, IdleConnTimeout: 30 * time.Second}
	scheme := "http"
	if t.TLS != nil {
		scheme = "https"
		rt.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := e.opts.Dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			tc := tls.Client(c, t.TLS)
			if err := tc.HandshakeContext(ctx); err != nil {
				c.Close()
				return nil, err
			}
			return tc, nil
		}
	}
	return &httpTransport{client: &http.Client{Transport: rt}, url: scheme + "://" + t.Address + d.Path, host: d.Authority}
}

func (h *httpTransport) close() { h.client.CloseIdleConnections() }

func (h *httpTransport) send(ctx context.Context, _ Signal, body []byte) result {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return result{err: err}
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	if h.host != "" {
		req.Host = h.host
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return result{err: err, retry: true}
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return result{err: err, retry: true}
	}
	if resp.StatusCode/100 == 2 {
		r := result{}
		r.rejected, r.message = partialSuccess(reply)
		return r
	}
	r := result{err: errors.New("OTLP/HTTP status " + resp.Status)}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		r.retry = true
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
			r.after = min(time.Duration(n)*time.Second, time.Hour)
		}
	}
	return r
}
