package ads

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// encoded is one resource as it goes over the wire; it never changes.
type encoded struct {
	name    string
	version string // digest of the content: the same in every process
	any     *anypb.Any
}

// absent stands for "told that there is no such resource".
var absent = &encoded{}

// resourceSet is what a session may send: everything of its node, encoded.
type resourceSet struct {
	revision uint64
	byType   map[string]map[string]*encoded
}

func (s *resourceSet) get(typeURL, name string) *encoded { return s.byType[typeURL][name] }

// encoder turns messages into their wire form. Equal resources of different
// proxies share one copy as long as either of the last two revisions has them.
type encoder struct {
	mu        sync.Mutex
	revision  uint64
	cur, prev map[string]*encoded
}

// encode marshals deterministically, so that equal content always has the same
// version and is never sent twice. Secrets are left out unless wanted.
func (c *encoder) encode(r Resources, secrets bool) (*resourceSet, error) {
	set := &resourceSet{revision: r.Revision, byType: make(map[string]map[string]*encoded, len(r.ByType))}
	c.mu.Lock()
	if r.Revision > c.revision {
		c.revision, c.prev, c.cur = r.Revision, c.cur, nil
	}
	c.mu.Unlock()
	for typeURL, resources := range r.ByType {
		if typeURL == secretType && !secrets {
			continue
		}
		out := make(map[string]*encoded, len(resources))
		for name, msg := range resources {
			value, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
			if err != nil {
				return nil, fmt.Errorf("encode %s %q: %w", ShortName(typeURL), name, err)
			}
			out[name] = c.intern(typeURL, name, value)
		}
		set.byType[typeURL] = out
	}
	return set, nil
}

func (c *encoder) intern(typeURL, name string, value []byte) *encoded {
	sum := sha256.Sum256(value)
	e := &encoded{name: name, version: hex.EncodeToString(sum[:12])}
	key := typeURL + "\x00" + name + "\x00" + e.version
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.cur[key]; ok {
		return old
	}
	if old, ok := c.prev[key]; ok {
		e = old
	} else {
		e.any = &anypb.Any{TypeUrl: typeURL, Value: value}
	}
	if c.cur == nil {
		c.cur = make(map[string]*encoded)
	}
	c.cur[key] = e
	return e
}
