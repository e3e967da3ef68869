package http2

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"sync"
	"testing"
	"time"

	xnet "golang.org/x/net/http2"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/mtls"
)

// repeater sends every body back, no faster than its reader takes it.
type repeater struct {
	s    message.Sender
	head message.Head
}

type repeaterAcceptor struct{}

func (repeaterAcceptor) Accept(s message.Sender) message.Receiver { return &repeater{s: s} }
func (repeaterAcceptor) OnConnClosed()                            {}

func (r *repeater) OnHead(_ *message.Head, end bool) {
	r.head.SetStatus(200)
	r.s.SendHead(&r.head, end)
}

func (r *repeater) OnData(p []byte, end bool) {
	r.s.SendData(p, end)
	if !end && r.s.OverHigh() {
		r.s.Pause(true)
	}
}
func (r *repeater) OnTrailers(h *message.Head)    { r.s.SendTrailers(h) }
func (r *repeater) OnInformational(*message.Head) {}
func (r *repeater) OnReset(message.ResetCode)     {}
func (r *repeater) OnDrained()                    { r.s.Pause(false) }

// serveTLS puts a server codec on every TLS connection that comes.
func serveTLS(t *testing.T, a message.Acceptor) netip.AddrPort {
	t.Helper()
	donor := httptest.NewUnstartedServer(nil) // for its certificate
	donor.StartTLS()
	t.Cleanup(donor.Close)
	conf := &tls.Config{Certificates: donor.TLS.Certificates, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	l := startLoop(t)
	o := &ServerOptions{Pool: NewPool(l.Later), Timers: l}
	shakes := mtls.NewPool(mtls.Options{})
	fd, addr := listen(t)
	l.Post(func() {
		_, err := l.Listen(fd, func(fd int, remote netip.AddrPort) {
			c, err := l.Adopt(fd, message.Conn{Local: addr, Remote: remote})
			if err != nil {
				t.Error(err)
				return
			}
			shakes.Server(c, nil, conf, func(tr message.Transport, err error) {
				if err == nil {
					NewServer(tr, a, o)
				}
			})
		})
		if err != nil {
			t.Error(err)
		}
	})
	return addr
}

// Large bodies both ways at once over TLS, where the codec hands plaintext to a
// layer that encrypts once per round.
func TestTLS_largeBodiesBothWays(t *testing.T) {
	addr := serveTLS(t, repeaterAcceptor{})
	tr := &xnet.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(tr.CloseIdleConnections)
	client := &http.Client{Transport: tr}
	body := make([]byte, 3<<20)
	_, _ = rand.Read(body)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for range 4 {
				n := len(body) >> (2 * i)
				resp, err := client.Post("https://"+addr.String()+"/", "", bytes.NewReader(body[:n]))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, body[:n]) {
					t.Errorf("%d of %d bytes, %v", len(got), n, err)
				}
			}
		})
	}
	wg.Wait()
}

// The conformance suite, where it is installed, in clear text and over TLS.
func TestConformance_h2spec(t *testing.T) {
	bin, err := exec.LookPath("h2spec")
	if err != nil {
		t.Skip("h2spec is not installed: go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible")
	}
	run := func(addr netip.AddrPort, args ...string) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		args = append(args, "--strict", "-o", "5", "-h", "127.0.0.1", "-p", fmt.Sprint(addr.Port()))
		out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte(" 0 skipped, 0 failed")) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	l := startLoop(t)
	o := &ServerOptions{Pool: NewPool(l.Later), Timers: l}
	fd, addr := listen(t)
	l.Post(func() {
		_, err := l.Listen(fd, func(fd int, remote netip.AddrPort) {
			c, err := l.Adopt(fd, message.Conn{Local: addr, Remote: remote})
			if err != nil {
				t.Error(err)
				return
			}
			NewServer(c, helloAcceptor{}, o)
		})
		if err != nil {
			t.Error(err)
		}
	})
	run(addr)
	run(serveTLS(t, helloAcceptor{}), "-t", "-k")
}
