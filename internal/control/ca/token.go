package ca

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"lateen.dev/lateen/internal/control/disk"
	"lateen.dev/lateen/internal/spiffe"
)

// tokenLifetime is how long a bootstrap token waits to be used. A proxy uses
// it in its first second.
const tokenLifetime = 15 * time.Minute

// maxTokens bounds how many tokens may be outstanding.
const maxTokens = 10_000

// ErrToken means that a token is unknown, used up or expired; which of them is
// not told to the caller.
var ErrToken = errors.New("bootstrap token refused")

// Binding is what a token stands for.
type Binding struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	Pod            string `json:"pod"`
}

// storedToken is a token at rest: the secret half only as its hash.
type storedToken struct {
	ID      string    `json:"id"`
	Hash    string    `json:"sha256"`
	Expires time.Time `json:"expires"`
	Binding
}

// tokenStore keeps outstanding tokens in memory and in one file, so that a pod
// that starts while the control plane restarts still gets its certificate.
type tokenStore struct {
	mu     sync.Mutex
	path   string
	tokens map[string]storedToken
}

func (s *tokenStore) open(path string, now time.Time) error {
	s.path, s.tokens = path, make(map[string]storedToken)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := disk.Private(path); err != nil {
		return err
	}
	var stored []storedToken
	if err := json.Unmarshal(data, &stored); err != nil {
		return fmt.Errorf("read %s: %w: remove it; pods that are starting will be given new tokens", path, err)
	}
	for _, t := range stored {
		if t.Expires.After(now) {
			s.tokens[t.ID] = t
		}
	}
	return nil
}

// save writes the file; the caller holds the lock.
func (s *tokenStore) save() error {
	stored := make([]storedToken, 0, len(s.tokens))
	for _, t := range s.tokens {
		stored = append(stored, t)
	}
	data, err := json.Marshal(stored)
	if err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	return disk.WriteFile(s.path, data, 0o600)
}

func (s *tokenStore) issue(b Binding, now time.Time) (string, error) {
	var raw [8 + 32]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("make bootstrap token: %w", err)
	}
	id, secret := hex.EncodeToString(raw[:8]), base64.RawURLEncoding.EncodeToString(raw[8:])
	hash := sha256.Sum256([]byte(secret))

	s.mu.Lock()
	defer s.mu.Unlock()
	for k, t := range s.tokens {
		if !t.Expires.After(now) {
			delete(s.tokens, k)
		}
	}
	if len(s.tokens) >= maxTokens {
		return "", fmt.Errorf("make bootstrap token: %d are outstanding, at most %d: wait until some are used or expire", len(s.tokens), maxTokens)
	}
	s.tokens[id] = storedToken{ID: id, Hash: hex.EncodeToString(hash[:]), Expires: now.Add(tokenLifetime), Binding: b}
	if err := s.save(); err != nil {
		delete(s.tokens, id)
		return "", err
	}
	return id + "." + secret, nil
}

// redeem uses a token up. The public half finds it; the secret half is
// compared by hash and in constant time.
func (s *tokenStore) redeem(token string, now time.Time) (Binding, error) {
	id, secret, ok := strings.Cut(token, ".")
	if !ok || len(token) > 256 {
		return Binding{}, ErrToken
	}
	hash := sha256.Sum256([]byte(secret))

	s.mu.Lock()
	defer s.mu.Unlock()
	t, found := s.tokens[id]
	if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(hash[:])), []byte(t.Hash)) != 1 || !found {
		return Binding{}, ErrToken
	}
	delete(s.tokens, id)
	// If its use cannot be recorded, a restart would make it usable again.
	if err := s.save(); err != nil {
		s.tokens[id] = t
		return Binding{}, err
	}
	if !t.Expires.After(now) {
		return Binding{}, ErrToken
	}
	return t.Binding, nil
}

// IssueToken returns a new single-use token, valid for 15 minutes, that buys
// the first certificate of a pod.
func (a *Authority) IssueToken(b Binding) (string, error) {
	if _, err := spiffe.New(a.trustDomain, b.Namespace, b.ServiceAccount); err != nil {
		return "", fmt.Errorf("make bootstrap token for pod %s.%s: %w", b.Pod, b.Namespace, err)
	}
	if b.Pod == "" {
		return "", fmt.Errorf("make bootstrap token in namespace %s: the pod has no name", b.Namespace)
	}
	return a.tokens.issue(b, a.now())
}
