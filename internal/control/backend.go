package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/control/ads"
	"lateen.dev/lateen/internal/control/ca"
	"lateen.dev/lateen/internal/control/validate"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// sourceLocal is the Source of what the supervisor writes.
const sourceLocal = "local"

// backend answers the control API.
type backend struct{ c *controller }

// localObject is one object of the supervisor, with a digest that tells a
// repetition from a change.
type localObject struct {
	object *resource.Object
	digest [sha256.Size]byte
}

// WriteLocal implements api.Backend.
func (b *backend) WriteLocal(ctx context.Context, state api.LocalState) error {
	put := make([]localObject, 0, len(state.Put))
	for _, data := range state.Put {
		o, findings := resource.DecodeJSON(sourceLocal, data)
		if o == nil || validate.Refused(findings) {
			return invalid("write local state: %s", describe(findings))
		}
		switch o.Kind {
		case resource.KubePod, resource.KubeSlice, resource.Node:
			put = append(put, localObject{object: o, digest: sha256.Sum256(data)})
		default:
			return invalid("write local state: %v is configuration: use apply", o.Key)
		}
	}
	if !b.c.call(ctx, func() { b.c.setLocal(put, state) }) {
		return ctx.Err()
	}
	return nil
}

// setLocal merges or replaces the local state. The first complete one opens
// the gate to the proxies at once.
func (c *controller) setLocal(put []localObject, state api.LocalState) {
	next := c.local
	if state.Replace {
		next = make(map[resource.Key]localObject, len(put))
	}
	changed := false
	for _, l := range put {
		key := l.object.Key
		if old, ok := c.local[key]; ok && old.digest == l.digest {
			next[key] = old
			continue
		}
		next[key], changed = l, true
	}
	for _, k := range state.Delete {
		if _, ok := next[keyOf(k)]; ok {
			delete(next, keyOf(k))
			changed = true
		}
	}
	changed = changed || len(next) != len(c.local)
	c.local = next
	if state.Replace && !c.localReady {
		c.localReady = true
		c.rebuild()
		return
	}
	if changed {
		c.pending.note(time.Now())
	}
}

// Token implements api.Backend.
func (b *backend) Token(_ context.Context, r api.TokenRequest) (api.TokenResponse, error) {
	token, err := b.c.ca.IssueToken(ca.Binding{Namespace: r.Namespace, ServiceAccount: r.ServiceAccount, Pod: r.Pod})
	if err != nil {
		return api.TokenResponse{}, invalid("%v", err)
	}
	return api.TokenResponse{Token: token, RootsPEM: b.c.ca.RootsPEM(), TrustDomain: b.c.ca.TrustDomain()}, nil
}

// Status implements api.Backend.
func (b *backend) Status(ctx context.Context) (api.Status, error) {
	v := b.c.current.Load()
	s := api.Status{
		APIVersion: "lateen.dev/v1alpha1", Version: b.c.o.Version, TrustDomain: b.c.ca.TrustDomain(), RootExpiry: b.c.ca.RootExpiry(),
		Objects: make(map[string]int), Findings: v.Findings, Revision: v.Revision,
	}
	for _, i := range b.items(api.ObjectQuery{}) {
		s.Objects[string(i.Kind)]++
	}
	var err error
	s.Proxies, err = b.Proxies(ctx)
	return s, err
}

// items returns the objects that match, in order: running pods rather than the
// wish for them.
func (b *backend) items(q api.ObjectQuery) []*resource.Object {
	v := b.c.current.Load()
	match := func(k resource.Key) bool {
		return (q.Kind == "" || strings.EqualFold(q.Kind, string(k.Kind))) && (q.Namespace == "" || q.Namespace == k.Namespace) && (q.Name == "" || q.Name == k.Name)
	}
	var out []*resource.Object
	for k, o := range v.Local {
		if match(k) {
			out = append(out, o)
		}
	}
	for k, o := range v.Objects {
		if match(k) && v.Local[k] == nil {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *resource.Object) int { return compareKeys(a.Key, b.Key) })
	return out
}

// Objects implements api.Backend.
func (b *backend) Objects(_ context.Context, q api.ObjectQuery) ([]api.ObjectItem, error) {
	out := []api.ObjectItem{}
	for _, o := range b.items(q) {
		data, err := o.JSON()
		if err != nil {
			return nil, fmt.Errorf("encode %v: %w", o.Key, err)
		}
		out = append(out, api.ObjectItem{Key: wireKey(o.Key), Source: place(o), Object: data})
	}
	return out, nil
}

// Findings implements api.Backend.
func (b *backend) Findings(context.Context) ([]finding.Finding, error) {
	return b.c.current.Load().Findings, nil
}

// validNamespace keeps a namespace from being a path.
var validNamespace = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Apply implements api.Backend: all documents or none.
func (b *backend) Apply(ctx context.Context, req api.Applied) (api.ApplyResult, error) {
	var objects []*resource.Object
	var findings []finding.Finding
	for _, m := range req.Manifests {
		found, about := resource.Decode(m.Source, m.Data)
		objects, findings = append(objects, found...), append(findings, about...)
	}
	if len(objects) == 0 && len(findings) == 0 {
		return api.ApplyResult{}, invalid("apply: there is no object in what was given")
	}
	seen := make(map[resource.Key]*resource.Object, len(objects))
	for _, o := range objects {
		switch {
		case o.Namespace != "" && !validNamespace.MatchString(o.Namespace):
			return api.ApplyResult{}, invalid("apply %v: %q is no name of a namespace", o.Key, o.Namespace)
		case seen[o.Key] != nil:
			return api.ApplyResult{}, invalid("apply %v: it is given twice, at %s and %s", o.Key, place(seen[o.Key]), place(o))
		case len(o.Name) > 240:
			return api.ApplyResult{}, invalid("apply %v: the name is longer than 240 characters", o.Key)
		}
		seen[o.Key] = o
	}
	result, err := api.ApplyResult{}, error(nil)
	if !b.c.call(ctx, func() { result, err = b.c.apply(objects, findings, req.DryRun) }) {
		return api.ApplyResult{}, ctx.Err()
	}
	return result, err
}

// apply runs on the owner's goroutine.
func (c *controller) apply(objects []*resource.Object, findings []finding.Finding, dryRun bool) (api.ApplyResult, error) {
	result := api.ApplyResult{Changed: []api.ObjectKey{}, Findings: findings}
	for _, o := range objects {
		if err := c.owned("apply", o.Key); err != nil {
			return api.ApplyResult{}, err
		}
		result.Findings = append(result.Findings, c.acceptor.judge(o).findings...)
	}
	finding.Sort(result.Findings)
	if validate.Refused(result.Findings) {
		return result, nil
	}
	changed := slices.DeleteFunc(slices.Clone(objects), func(o *resource.Object) bool { return c.same(o) })
	for _, o := range changed {
		result.Changed = append(result.Changed, wireKey(o.Key))
	}
	if dryRun || len(changed) == 0 {
		return result, nil
	}
	if err := c.applied.put(changed); err != nil {
		return api.ApplyResult{}, &api.Error{Code: api.CodeUnavailable, Message: err.Error(), Hint: "nothing was changed"}
	}
	c.rebuild()
	// What the whole mesh says about these objects is more than each by itself.
	about := make(map[finding.Object]bool, len(objects))
	for _, o := range objects {
		about[o.Object()] = true
	}
	known := make(map[string]bool, len(result.Findings))
	for _, f := range result.Findings {
		known[f.Code+f.Object.String()+f.Path] = true
	}
	for _, f := range c.current.Load().Findings {
		if about[f.Object] && !known[f.Code+f.Object.String()+f.Path] {
			result.Findings = append(result.Findings, f)
		}
	}
	finding.Sort(result.Findings)
	return result, nil
}

// same reports whether an object is applied already with the same content.
func (c *controller) same(o *resource.Object) bool {
	old := c.applied.objects[o.Key]
	if old == nil {
		return false
	}
	a, errA := old.JSON()
	b, errB := o.JSON()
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// owned refuses to touch what belongs to a file.
func (c *controller) owned(verb string, k resource.Key) error {
	for _, o := range c.files.Objects {
		if o.Key == k {
			return &api.Error{
				Code:    api.CodeForbidden,
				Message: fmt.Sprintf("%s %v: it is defined at %s", verb, k, place(o)),
				Hint:    "edit that file; it is watched",
			}
		}
	}
	return nil
}

// Delete implements api.Backend: all objects or none.
func (b *backend) Delete(ctx context.Context, req api.Deleted) (api.ApplyResult, error) {
	result, err := api.ApplyResult{}, error(nil)
	if !b.c.call(ctx, func() { result, err = b.c.delete(req) }) {
		return api.ApplyResult{}, ctx.Err()
	}
	return result, err
}

func (c *controller) delete(req api.Deleted) (api.ApplyResult, error) {
	result := api.ApplyResult{Changed: []api.ObjectKey{}, Findings: []finding.Finding{}}
	for _, wire := range req.Keys {
		k := keyOf(wire)
		if err := c.owned("delete", k); err != nil {
			return api.ApplyResult{}, err
		}
		if c.applied.objects[k] == nil {
			return api.ApplyResult{}, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("delete %v: nothing of that name was applied", k), Hint: "lateen get lists what is in force and where it comes from"}
		}
		result.Changed = append(result.Changed, wire)
	}
	if req.DryRun {
		return result, nil
	}
	for i, wire := range req.Keys {
		if err := c.applied.remove(keyOf(wire)); err != nil {
			c.rebuild()
			return api.ApplyResult{Changed: result.Changed[:i]}, &api.Error{Code: api.CodeUnavailable, Message: err.Error(), Hint: fmt.Sprintf("%d of %d objects were deleted", i, len(req.Keys))}
		}
	}
	c.rebuild()
	return result, nil
}

// Proxies implements api.Backend.
func (b *backend) Proxies(context.Context) ([]api.ProxyStatus, error) {
	out := []api.ProxyStatus{}
	for _, s := range b.c.ads.Status() {
		p := api.ProxyStatus{
			ID: s.Node.Key(), Node: s.Node.ID, Role: s.Node.Role, Since: s.Since, Version: s.Node.Agent, Revision: s.Revision,
			Types: make(map[string]api.TypeStatus, len(s.Types)), CertExpiry: s.CertExpiry,
		}
		if s.Node.Authenticated() {
			p.Identity = s.Node.Identity.String()
		}
		if end, ok := b.c.ca.PodExpiry(s.Node.Key()); ok && end.After(p.CertExpiry) {
			p.CertExpiry = end
		}
		for short, t := range s.Types {
			p.Types[short] = api.TypeStatus{State: t.State, Since: t.Since, Version: t.Version, Error: t.Reason, Count: t.Count}
		}
		out = append(out, p)
	}
	return out, nil
}

// ProxyResources implements api.Backend.
func (b *backend) ProxyResources(_ context.Context, id string) (api.ProxyResources, error) {
	sent, ok := b.c.ads.Resources(id)
	if !ok {
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no proxy %q is connected", id), Hint: "proxies are named pod.namespace; \"lateen proxy status\" lists them"}
	}
	out := make(api.ProxyResources, len(sent))
	for typeURL, resources := range sent {
		short := ads.ShortName(typeURL)
		out[short] = make(map[string]json.RawMessage, len(resources))
		for name, a := range resources {
			data, err := ads.Print(a)
			if err != nil {
				return nil, fmt.Errorf("print %s %q of %s: %w", short, name, id, err)
			}
			out[short][name] = data
		}
	}
	return out, nil
}

func invalid(format string, args ...any) error {
	return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf(format, args...)}
}

// describe is the first error among findings, in words.
func describe(findings []finding.Finding) string {
	for _, f := range findings {
		if f.Severity == finding.Error {
			return fmt.Sprintf("%v: %s %s", f.Object, f.Path, f.Message)
		}
	}
	return "not an object"
}
