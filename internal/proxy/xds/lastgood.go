package xds

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The last good configuration on disk: one line of JSON, then one
// DeltaDiscoveryResponse per type, each with its length in front. Secrets are
// not in it: private keys never reach a disk.

const (
	lastGoodFormat = "lateen-xds-1"
	maxLastGood    = 256 << 20
	clockSkew      = 5 * time.Minute
)

// fileHead is the first line.
type fileHead struct {
	Format string `json:"format"`
	// Identity and Node bind the file to one proxy.
	Identity string    `json:"identity"`
	Node     string    `json:"node"`
	Saved    time.Time `json:"saved"`
	// Digest covers the other fields and the body.
	Digest string `json:"digest"`
}

func (h *fileHead) digest(body []byte) string {
	d := sha256.New()
	fmt.Fprintf(d, "%s\n%s\n%s\n%d\n", h.Format, h.Identity, h.Node, h.Saved.UnixNano())
	d.Write(body)
	return hex.EncodeToString(d.Sum(nil))
}

// encode renders the cache.
func (c cache) encode(h fileHead) ([]byte, error) {
	var body []byte
	for _, typ := range order() {
		if typ == TypeSecret || c[typ] == nil {
			continue
		}
		r := &discoverypb.DeltaDiscoveryResponse{TypeUrl: typ}
		for name, m := range c[typ].messages {
			a, ok := m.(*anypb.Any)
			if !ok {
				continue
			}
			r.Resources = append(r.Resources, &discoverypb.Resource{
				Name: name, Version: c[typ].versions[name], Resource: a,
			})
		}
		data, err := proto.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", ShortName(typ), err)
		}
		body = protowire.AppendBytes(body, data)
	}
	h.Format = lastGoodFormat
	h.Digest = h.digest(body)
	line, err := json.Marshal(&h)
	return append(append(line, '\n'), body...), err
}

// decodeFile reads a rendered cache and checks that it is whole, ours and young
// enough.
func decodeFile(data []byte, want fileHead, now time.Time, maxAge time.Duration) (cache, error) {
	line, body, ok := bytes.Cut(data, []byte("\n"))
	var h fileHead
	if !ok || json.Unmarshal(line, &h) != nil || h.Format != lastGoodFormat {
		return nil, errors.New("it is not a file of this format")
	}
	switch age := now.Sub(h.Saved); {
	case h.Digest != h.digest(body):
		return nil, errors.New("its digest is wrong: it was damaged or changed")
	case h.Identity != want.Identity || h.Node != want.Node:
		return nil, fmt.Errorf("it belongs to %s (%s)", h.Node, h.Identity)
	case age > maxAge:
		return nil, fmt.Errorf("it is %v old, at most %v are trusted", age.Round(time.Minute), maxAge)
	case age < -clockSkew:
		return nil, fmt.Errorf("it comes from the future (%v): the clock has jumped", h.Saved)
	}
	c := cache{}
	for len(body) > 0 {
		data, n := protowire.ConsumeBytes(body)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		body = body[n:]
		var r discoverypb.DeltaDiscoveryResponse
		if err := proto.Unmarshal(data, &r); err != nil {
			return nil, err
		}
		if r.GetTypeUrl() == TypeSecret {
			return nil, errors.New("it holds secrets")
		}
		c.table(r.GetTypeUrl()).apply(&r)
	}
	return c, nil
}

// persist writes the last good configuration if it has changed.
func (c *Client) persist() {
	if c.o.File == "" || !c.dirty {
		return
	}
	data, err := c.cache.encode(fileHead{Identity: c.o.Identity, Node: c.o.Node.ID, Saved: c.o.Now().Round(0).UTC()})
	if err == nil {
		err = writeFile(c.o.File, data)
	}
	if err != nil {
		c.o.Log.Warn("the last good configuration cannot be kept", "file", c.o.File, "error", err)
		return
	}
	c.dirty = false
}

// writeFile replaces a file as a whole, readable by its owner only.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".last-good-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// restore puts the last good configuration in force, if there is one to trust.
func (c *Client) restore() {
	data, err := readFile(c.o.File)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var kept cache
	if err == nil {
		kept, err = decodeFile(data, fileHead{Identity: c.o.Identity, Node: c.o.Node.ID}, c.o.Now(), c.o.MaxAge)
	}
	if err != nil {
		c.o.Log.Warn("the last good configuration is not used", "file", c.o.File, "error", err)
		return
	}
	c.cache = kept
	c.names, _ = decodeNames(c.cache.table(TypeNames))
	c.origins, _ = decodeOrigins(c.cache.table(TypeOrigin))
	answer := c.update("")
	for _, bad := range answer.Rejected {
		c.o.Log.Warn("a kept resource was refused", "type", ShortName(bad.Type), "name", bad.Name, "reason", bad.Reason)
		c.cache.table(bad.Type).revert(bad.Name, undo{})
	}
	_ = c.resubscribe(nil, answer) // without a stream nothing is sent that could fail
	c.o.Log.Info("the last good configuration is in force until the control plane answers", "file", c.o.File)
}

// readFile reads a file that only its owner, who is us, can have written.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("mode %v: want a regular file for its owner alone", st.Mode())
	case ok && int(sys.Uid) != os.Geteuid():
		return nil, fmt.Errorf("it belongs to uid %d", sys.Uid)
	case st.Size() > maxLastGood:
		return nil, fmt.Errorf("longer than %d bytes", maxLastGood)
	}
	return io.ReadAll(io.LimitReader(f, maxLastGood))
}
