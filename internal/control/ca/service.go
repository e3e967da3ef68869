package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"lateen.dev/lateen/internal/spiffe"
	"lateen.dev/lateen/internal/xdspb/istioca"
)

// Stats counts what the authority has done since it was opened.
type Stats struct {
	Issued          uint64 // first certificates, bought with a token
	Renewed         uint64
	RefusedTokens   uint64
	RefusedCallers  uint64 // no credential, or one that proves nothing
	RefusedRequests uint64 // bad CSRs, and callers above the rate limit
}

type counters struct {
	issued, renewed, refusedTokens, refusedCallers, refusedRequests atomic.Uint64
}

// Stats returns the counters.
func (a *Authority) Stats() Stats {
	return Stats{
		Issued: a.stats.issued.Load(), Renewed: a.stats.renewed.Load(),
		RefusedTokens: a.stats.refusedTokens.Load(), RefusedCallers: a.stats.refusedCallers.Load(),
		RefusedRequests: a.stats.refusedRequests.Load(),
	}
}

// issuance remembers for which pod a serial was signed, so that the renewal of
// a certificate is known to be the same pod's. It is for status only: it
// grants nothing and is lost on restart.
type issuance struct {
	pod      string // name.namespace
	notAfter time.Time
}

// caller is somebody who has proved who they are.
type caller struct {
	id      spiffe.ID
	pod     string // name.namespace, "" if not known
	renewal bool
}

// CreateCertificate implements istioca.Server. The identity in the certificate
// is the caller's own; what the CSR asks for besides its key is ignored.
func (a *Authority) CreateCertificate(ctx context.Context, req *istioca.IstioCertificateRequest) (*istioca.IstioCertificateResponse, error) {
	who, err := a.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	if who.renewal && !a.renewals.allow(who.id.String(), a.now()) {
		a.stats.refusedRequests.Add(1)
		return nil, status.Errorf(codes.ResourceExhausted, "%v renews too often: wait a second", who.id)
	}
	chain, cert, err := a.sign(req.GetCsr(), who.id, seconds(req.GetValidityDuration()))
	if err != nil {
		a.stats.refusedRequests.Add(1)
		a.log.Warn("certificate refused", "identity", who.id.String(), "pod", who.pod, "error", err)
		if errors.Is(err, errCSR) {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return nil, status.Error(codes.Internal, "the authority could not sign; its log says why")
	}
	a.remember(cert, who.pod)
	if who.renewal {
		a.stats.renewed.Add(1)
	} else {
		a.stats.issued.Add(1)
	}
	a.log.Info("certificate signed", "identity", who.id.String(), "pod", who.pod, "renewal", who.renewal,
		"serial", cert.SerialNumber.Text(16), "notAfter", cert.NotAfter)
	return &istioca.IstioCertificateResponse{CertChain: chain}, nil
}

// seconds converts a wanted lifetime; what does not fit a Duration, or is
// negative, means the default.
func seconds(n int64) time.Duration {
	if n <= 0 || n > int64(maxLifetime/time.Second) {
		return 0
	}
	return time.Duration(n) * time.Second
}

// authenticate is the only place that decides who a caller is: the holder of a
// valid SVID, else the holder of a bootstrap token. Nothing else counts, least
// of all where the call comes from, and both need TLS.
func (a *Authority) authenticate(ctx context.Context) (caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}, a.refuseCaller("no connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return caller{}, a.refuseCaller("certificates are signed over TLS only: use port 15012")
	}
	if chains := info.State.VerifiedChains; len(chains) > 0 {
		return a.authenticateSVID(chains[0][0])
	}
	token, ok := bearer(ctx)
	if !ok {
		return caller{}, a.refuseCaller("no client certificate and no bearer token")
	}
	b, err := a.tokens.redeem(token, a.now())
	if err != nil {
		a.stats.refusedTokens.Add(1)
		a.log.Warn("bootstrap token refused", "peer", p.Addr.String(), "error", err)
		if errors.Is(err, ErrToken) {
			return caller{}, status.Error(codes.Unauthenticated, ErrToken.Error())
		}
		return caller{}, status.Error(codes.Unavailable, "the authority cannot record the use of tokens; its log says why")
	}
	return caller{
		id:  spiffe.ID{TrustDomain: a.trustDomain, Namespace: b.Namespace, ServiceAccount: b.ServiceAccount},
		pod: b.Pod + "." + b.Namespace,
	}, nil
}

func (a *Authority) authenticateSVID(cert *x509.Certificate) (caller, error) {
	id, err := a.identityOf(cert)
	if err != nil {
		return caller{}, a.refuseCaller(err.Error())
	}
	// The handshake checked the time, but a connection may be older than that.
	if now := a.now(); now.After(cert.NotAfter) {
		return caller{}, a.refuseCaller("the client certificate has expired")
	}
	a.issuedMu.Lock()
	pod := a.issued[cert.SerialNumber.Text(16)].pod
	a.issuedMu.Unlock()
	return caller{id: id, pod: pod, renewal: true}, nil
}

func (a *Authority) refuseCaller(reason string) error {
	a.stats.refusedCallers.Add(1)
	return status.Error(codes.Unauthenticated, reason)
}

func bearer(ctx context.Context) (string, bool) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if scheme, token, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "bearer") {
			return token, true
		}
	}
	return "", false
}

func (a *Authority) remember(cert *x509.Certificate, pod string) {
	now := a.now()
	a.issuedMu.Lock()
	defer a.issuedMu.Unlock()
	if now.After(a.nextSweepAt) {
		for serial, i := range a.issued {
			if now.After(i.notAfter) {
				delete(a.issued, serial)
			}
		}
		for pod, end := range a.podExpiry {
			if now.After(end) {
				delete(a.podExpiry, pod)
			}
		}
		a.nextSweepAt = now.Add(time.Minute)
	}
	if pod == "" {
		return
	}
	a.issued[cert.SerialNumber.Text(16)] = issuance{pod: pod, notAfter: cert.NotAfter}
	a.podExpiry[pod] = cert.NotAfter
}

// PodExpiry returns the end of the SVID last signed for a pod (name.namespace),
// as far as this process has seen it.
func (a *Authority) PodExpiry(pod string) (time.Time, bool) {
	a.issuedMu.Lock()
	defer a.issuedMu.Unlock()
	t, ok := a.podExpiry[pod]
	return t, ok
}

// Renewals of one identity may come in bursts (every replica of a Deployment
// has the same identity) but not without end.
const (
	renewalBurst     = 256
	renewalPerSecond = 8
)

// limiter is a token bucket for each identity that has renewed lately.
type limiter struct {
	mu      sync.Mutex
	buckets map[string]bucket
}

type bucket struct {
	level float64
	at    time.Time
}

func (l *limiter) allow(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buckets == nil {
		l.buckets = make(map[string]bucket)
	}
	b, ok := l.buckets[key]
	if !ok {
		if len(l.buckets) >= 10_000 { // identities are ours, so this many are real: forget the full ones
			l.sweep(now)
		}
		b = bucket{level: renewalBurst, at: now}
	}
	b.level = refill(b, now)
	b.at = now
	granted := b.level >= 1
	if granted {
		b.level--
	}
	l.buckets[key] = b
	return granted
}

func (l *limiter) sweep(now time.Time) {
	for k, b := range l.buckets {
		if refill(b, now) >= renewalBurst {
			delete(l.buckets, k)
		}
	}
}

// refill tolerates a clock that jumps back: nothing is added then.
func refill(b bucket, now time.Time) float64 {
	return min(renewalBurst, b.level+max(0, now.Sub(b.at).Seconds())*renewalPerSecond)
}
