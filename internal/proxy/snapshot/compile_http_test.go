package snapshot

import (
	"strings"
	"testing"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httppb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/known/anypb"
)

// withOptions is a cluster with HTTP protocol options in text form.
func withOptions(t *testing.T, text string) *clusterpb.Cluster {
	t.Helper()
	var o httppb.HttpProtocolOptions
	if err := prototext.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	a, err := anypb.New(&o)
	if err != nil {
		t.Fatal(err)
	}
	return &clusterpb.Cluster{
		Name: "c", ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_STATIC},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: a},
	}
}

func TestUpstreamVersionOfHTTP(t *testing.T) {
	for text, want := range map[string]UpstreamHTTP{
		`explicit_http_config { http_protocol_options {} }`:                                                                           UpstreamHTTP1,
		`explicit_http_config { http2_protocol_options { max_concurrent_streams { value: 7 } } }`:                                     UpstreamHTTP2,
		`use_downstream_protocol_config { http_protocol_options {} http2_protocol_options {} }`:                                       UpstreamAsDownstream,
		`common_http_protocol_options { idle_timeout { seconds: 3 } }`:                                                                UpstreamHTTP1,
		`explicit_http_config { http2_protocol_options { connection_keepalive { interval { seconds: 5 } timeout { seconds: 1 } } } }`: UpstreamHTTP2,
	} {
		c, err := cluster(withOptions(t, text))
		if err != nil || c.HTTP != want {
			t.Errorf("%s: %v %v, want %v", text, c, err, want)
			continue
		}
		if strings.Contains(text, "max_concurrent_streams") && c.H2.MaxConcurrentStreams != 7 {
			t.Errorf("%s: %+v", text, c.H2)
		}
		if strings.Contains(text, "keepalive") && (c.H2.KeepaliveInterval != 5*time.Second || c.H2.KeepaliveTimeout != time.Second) {
			t.Errorf("%s: %+v", text, c.H2)
		}
	}
	old, err := cluster(&clusterpb.Cluster{
		Name: "c", ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_STATIC},
		Http2ProtocolOptions: &corepb.Http2ProtocolOptions{}, //nolint:staticcheck // the old form still arrives
	})
	if err != nil || old.HTTP != UpstreamHTTP2 {
		t.Errorf("old form: %v %v", old, err)
	}
}

func TestUpstreamHTTPThatIsNotUnderstoodIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		`explicit_http_config { http3_protocol_options {} }`:                                          "http3",
		`explicit_http_config {}`:                                                                     "says no protocol",
		`auto_config { http2_protocol_options {} }`:                                                   "no TLS",
		`use_downstream_protocol_config { http3_protocol_options {} }`:                                "http3",
		`explicit_http_config { http2_protocol_options { allow_metadata: true } }`:                    "allow_metadata",
		`explicit_http_config { http2_protocol_options { max_concurrent_streams { value: 0 } } }`:     "not between",
		`explicit_http_config { http2_protocol_options { initial_stream_window_size { value: 9 } } }`: "not between",
	} {
		_, err := cluster(withOptions(t, text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestManagerCodec(t *testing.T) {
	for kind, want := range map[hcmpb.HttpConnectionManager_CodecType]Codec{
		hcmpb.HttpConnectionManager_AUTO: CodecAuto, hcmpb.HttpConnectionManager_HTTP1: CodecHTTP1, hcmpb.HttpConnectionManager_HTTP2: CodecHTTP2,
	} {
		var h HTTPManager
		if err := managerProtocol(&h, &hcmpb.HttpConnectionManager{CodecType: kind}); err != nil || h.Codec != want {
			t.Errorf("%v: %v %v", kind, h.Codec, err)
		}
	}
	if err := managerProtocol(&HTTPManager{}, &hcmpb.HttpConnectionManager{CodecType: hcmpb.HttpConnectionManager_HTTP3}); err == nil {
		t.Error("HTTP/3 was accepted")
	}
}

func TestChainNegotiatesOnlyWhatIsSpoken(t *testing.T) {
	for _, c := range []struct {
		codec Codec
		alpn  []string
		ok    bool
	}{
		{CodecAuto, []string{"lateen-h2", "h2", "http/1.1", "istio"}, true},
		{CodecAuto, nil, true},
		{CodecAuto, []string{"h3"}, false},
		{CodecHTTP1, []string{"http/1.1"}, true},
		{CodecHTTP1, []string{"h2", "http/1.1"}, false},
	} {
		f := &FilterChain{HTTP: &HTTPManager{Codec: c.codec}, TLS: &DownstreamTLS{ALPN: c.alpn}}
		if err := spokenALPN(f); (err == nil) != c.ok {
			t.Errorf("codec %d, ALPN %v: %v", c.codec, c.alpn, err)
		}
	}
	if err := spokenALPN(&FilterChain{TCP: &TCPProxy{}, TLS: &DownstreamTLS{ALPN: []string{"mqtt"}}}); err != nil {
		t.Errorf("TCP chain: %v", err)
	}
}
