package secret

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// kept is what a memfd holds, so that a proxy restarted while the control plane
// is away is who it was and serves what it served.
type kept struct {
	Chain []string `json:"chain"`
	Key   string   `json:"key"`
	// Named are the credentials that the control plane sent (SDS).
	Named  map[string]Credential `json:"named,omitempty"`
	Digest string                `json:"digest"`
}

// maxKept bounds the memfd: the SVID and some dozens of gateway credentials.
const maxKept = 16 * maxPEM

func (k *kept) digest() (string, error) {
	bare := *k
	bare.Digest = ""
	data, err := json.Marshal(&bare) // maps are written in the order of their keys
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:]), nil
}

// keep writes the SVID to the memfd, beside the credentials kept already.
func (s *Store) keep(chain []string, keyPEM []byte) error {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	s.kept.Chain, s.kept.Key = chain, string(keyPEM)
	return s.writeKept()
}

// keepNamed remembers a credential, or forgets it when c is nil.
func (s *Store) keepNamed(name string, c *Credential) {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	if c == nil {
		delete(s.kept.Named, name)
	} else {
		if s.kept.Named == nil {
			s.kept.Named = map[string]Credential{}
		}
		s.kept.Named[name] = *c
	}
	if err := s.writeKept(); err != nil {
		s.o.Log.Warn("a credential cannot be kept for a restart", "secret", name, "error", err)
	}
}

func (s *Store) writeKept() error {
	f := s.o.Keep
	if f == nil || s.kept.Key == "" {
		return nil // without an identity nothing is restored
	}
	var err error
	if s.kept.Digest, err = s.kept.digest(); err != nil {
		return err
	}
	data, err := json.Marshal(&s.kept)
	if err == nil && len(data) > maxKept {
		return fmt.Errorf("all credentials are %d bytes together, at most %d are kept", len(data), maxKept)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(data, 0)
	}
	return err
}

// restore reads SVID and credentials from the memfd; nil if it is empty.
// Credentials come back only together with the identity they were sent to.
func (s *Store) restore() (*svid, error) {
	data, err := io.ReadAll(io.NewSectionReader(s.o.Keep, 0, maxKept))
	if err != nil || len(bytes.TrimSpace(data)) == 0 {
		return nil, err
	}
	var k kept
	if err := json.Unmarshal(data, &k); err != nil {
		return nil, err
	}
	if want, err := k.digest(); err != nil || k.Digest != want {
		return nil, errors.New("its digest is wrong")
	}
	own, err := s.accept(k.Chain, []byte(k.Key))
	if err != nil {
		return nil, err
	}
	s.kept = k
	for name, c := range k.Named {
		n, err := parseCredential(c)
		if err != nil {
			s.o.Log.Warn("a kept credential is not usable", "secret", name, "error", err)
			delete(s.kept.Named, name)
			continue
		}
		s.named[name] = n
	}
	return own, nil
}

// Kept are the names of the credentials that came back from before a restart.
// They hold until the control plane says otherwise.
func (s *Store) Kept() []string {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	var names []string
	for name := range s.kept.Named {
		names = append(names, strings.Clone(name))
	}
	slices.Sort(names)
	return names
}
