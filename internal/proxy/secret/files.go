package secret

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"
)

// Secrets that Istio names by file: "file-cert:CERT~KEY" and "file-root:CA";
// "file-root:system" are the roots of the operating system.
const (
	fileCert    = "file-cert:"
	fileRoot    = "file-root:"
	systemRoots = "file-root:system"
)

// lookup returns a named secret, reading files on first use; nil if unknown.
func (s *Store) lookup(name string) *named {
	s.mu.RLock()
	n := s.named[name]
	s.mu.RUnlock()
	if n != nil || !strings.HasPrefix(name, fileCert) && !strings.HasPrefix(name, fileRoot) {
		return n
	}
	n = loadFiles(name)
	s.mu.Lock()
	s.named[name] = n
	s.mu.Unlock()
	return n
}

// loadFiles reads a file secret; its error travels inside.
func loadFiles(name string) *named {
	if name == systemRoots {
		pool, err := x509.SystemCertPool()
		return &named{roots: pool, err: err}
	}
	var c Credential
	var files []string
	if root, ok := strings.CutPrefix(name, fileRoot); ok {
		files = []string{root}
	} else {
		cert, key, ok := strings.Cut(strings.TrimPrefix(name, fileCert), "~")
		if !ok {
			return &named{err: fmt.Errorf("secret %q: want file-cert:CERT~KEY", name)}
		}
		files = []string{cert, key}
	}
	var newest time.Time
	var parts [2][]byte
	for i, f := range files {
		st, err := os.Stat(f)
		if err == nil && st.Size() > maxPEM {
			err = fmt.Errorf("longer than %d bytes", maxPEM)
		}
		if err == nil {
			parts[i], err = os.ReadFile(f)
		}
		if err != nil {
			return &named{err: fmt.Errorf("secret %q: %w", name, err), files: files}
		}
		if st.ModTime().After(newest) {
			newest = st.ModTime()
		}
	}
	if len(files) == 1 {
		c.RootsPEM = parts[0]
	} else {
		c.CertPEM, c.KeyPEM = parts[0], parts[1]
	}
	n, err := parseCredential(c)
	if err != nil {
		return &named{err: fmt.Errorf("secret %q: %w", name, err), files: files, modTime: newest}
	}
	n.files, n.modTime = files, newest
	return n
}

// reloadFiles looks whether file secrets have changed. A file that became
// unusable keeps what was read from it before.
func (s *Store) reloadFiles() {
	s.mu.RLock()
	var names []string
	for name, n := range s.named {
		if len(n.files) > 0 {
			names = append(names, name)
		}
	}
	s.mu.RUnlock()
	for _, name := range names {
		next, old := loadFiles(name), s.lookup(name)
		switch {
		case next.err != nil && old.err == nil:
			s.o.Log.Warn("a certificate file became unusable; the one before stays in use", "error", next.err)
		case next.err == nil && !next.modTime.Equal(old.modTime):
			s.put(name, next)
		}
	}
}
