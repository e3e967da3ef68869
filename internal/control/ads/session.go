package ads

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
)

// request is a discovery request of either variant.
type request struct {
	typeURL string
	nonce   string
	// refusal is the reason of a NACK; nack tells it from an empty reason.
	nack    bool
	refusal string
	// names is the whole subscription (state of the world).
	names []string
	// subscribe, unsubscribe and initial are its changes (delta); initial maps
	// the resources a client still has from an earlier stream to versions.
	subscribe, unsubscribe []string
	initial                map[string]string
}

// response is a discovery response of either variant.
type response struct {
	typeURL, nonce, version string
	resources               []*encoded
	removed                 []string // delta only
}

// session is the state of one xDS stream: what the client wants, has, and has
// not acknowledged yet. It has no lock, socket or clock; the stream that owns
// it provides them.
type session struct {
	node     *Node
	delta    bool
	maxNames int
	set      *resourceSet
	subs     map[string]*subscription
	lastID   uint64 // of nonces
	// acked is the newest revision that was acknowledged in full.
	acked uint64
}

// subscription is the state of one resource type.
type subscription struct {
	typeURL  string
	wildcard bool
	// explicit says that names were given once; from then on none means none.
	explicit bool
	names    map[string]bool
	// known is what the client was last sent of each resource; absent for
	// "there is none".
	known map[string]*encoded
	// refused are resources in responses that the client did not accept, by the
	// version it refused, "" for a removal. A NACK does not say which of a response's resources
	// was bad, so all of them are in doubt until one of them changes.
	refused  map[string]string
	inflight []*flight // oldest first
	reason   string    // of the last NACK
	since    time.Time // of the last change of state
	version  string    // of the last response
}

// flight is a response that has not been answered.
type flight struct {
	nonce string
	sent  []*encoded
	gone  []*encoded // what it takes away, as the client had it
	at    time.Time
	late  bool // pushes no longer wait for its answer
}

// maxFlights bounds how many responses of one type a client may leave
// unanswered before the oldest counts as refused.
const maxFlights = 16

func newSession(n *Node, delta bool, maxNames int) *session {
	return &session{node: n, delta: delta, maxNames: maxNames, subs: make(map[string]*subscription)}
}

// busy reports whether the client owes an answer; a new push must wait.
func (s *session) busy() bool {
	_, waits := s.oldest()
	return waits
}

// oldest returns when the longest unanswered response was sent, late ones not
// counted.
func (s *session) oldest() (t time.Time, ok bool) {
	for _, sub := range s.subs {
		for _, f := range sub.inflight {
			if !f.late && (!ok || f.at.Before(t)) {
				t, ok = f.at, true
			}
		}
	}
	return t, ok
}

// abandon stops waiting for answers that were due; should they come, they
// still count.
func (s *session) abandon(sentBefore time.Time) {
	for _, sub := range s.subs {
		for _, f := range sub.inflight {
			f.late = f.late || !f.at.After(sentBefore)
		}
	}
}

// unanswered reports whether anything sent has no answer, late or not.
func (s *session) unanswered() bool {
	for _, sub := range s.subs {
		if len(sub.inflight) > 0 {
			return true
		}
	}
	return false
}

// handle takes a request in and returns the responses it calls for. The
// session must have a set.
func (s *session) handle(r request, now time.Time) ([]response, error) {
	sub, old := s.subs[r.typeURL]
	if !old {
		if len(s.subs) >= 32 {
			return nil, fmt.Errorf("subscribe to %s: more than 32 types on one stream", r.typeURL)
		}
		sub = &subscription{
			typeURL: r.typeURL, since: now,
			names: make(map[string]bool), known: make(map[string]*encoded), refused: make(map[string]string),
		}
		s.subs[r.typeURL] = sub
	}
	current := sub.answer(r, now)
	defer s.settle()
	var answer bool
	if s.delta {
		answer = sub.change(r, !old)
	} else if current || !old {
		answer = sub.replace(r.names)
	}
	if n := len(sub.names); n > s.maxNames {
		return nil, fmt.Errorf("subscribe to %s: %d names, at most %d", ShortName(r.typeURL), n, s.maxNames)
	}
	if !answer && old {
		return nil, nil
	}
	if resp, ok := s.compute(sub, options{force: true}, now); ok {
		return []response{resp}, nil
	}
	return nil, nil
}

// answer takes an ACK or NACK in. It reports whether the request belongs to
// the newest response: in the state-of-the-world variant the names of any other
// are out of date and repeated later.
func (sub *subscription) answer(r request, now time.Time) (current bool) {
	i := slices.IndexFunc(sub.inflight, func(f *flight) bool { return f.nonce == r.nonce })
	if i < 0 {
		// A repetition of the last answered nonce carries a changed subscription.
		return len(sub.inflight) == 0
	}
	current = i == len(sub.inflight)-1
	f := sub.inflight[i]
	// Answers come in order: an answer skipped is an ACK the client merged.
	for _, earlier := range sub.inflight[:i] {
		sub.accept(earlier)
	}
	sub.inflight = sub.inflight[i+1:]
	if r.nack {
		sub.refuse(f, r.refusal, now)
	} else {
		sub.accept(f)
		sub.since = now
	}
	return current
}

func (sub *subscription) accept(f *flight) {
	for _, e := range f.sent {
		delete(sub.refused, e.name)
	}
	for _, e := range f.gone {
		delete(sub.refused, e.name)
	}
	if len(sub.refused) == 0 {
		sub.reason = ""
	}
}

func (sub *subscription) refuse(f *flight, reason string, now time.Time) {
	for _, e := range f.sent {
		sub.refused[e.name] = e.version
	}
	for _, e := range f.gone {
		// The client still has it.
		if known := sub.known[e.name]; known == nil || known == absent {
			sub.known[e.name], sub.refused[e.name] = e, ""
		}
	}
	sub.reason, sub.since = reason, now
	if sub.reason == "" {
		sub.reason = "the client gave no reason"
	}
}

// change applies a delta request and reports whether it asks for anything.
func (sub *subscription) change(r request, first bool) bool {
	if first && len(r.subscribe) == 0 && wildcardByDefault(sub.typeURL) {
		sub.wildcard = true
	}
	for _, name := range r.subscribe {
		if name == "*" {
			sub.wildcard = true
			continue
		}
		sub.names[name] = true
		// Subscribing again asks to be sent again: Envoy does so when it warms a
		// changed cluster and waits for its endpoints.
		delete(sub.known, name)
	}
	for _, name := range r.unsubscribe {
		if name == "*" {
			sub.wildcard = false
		} else {
			delete(sub.names, name)
		}
	}
	if len(r.unsubscribe) > 0 {
		sub.forgetUnwanted()
	}
	if first {
		for name, version := range r.initial {
			if sub.wants(name) && version != "" {
				sub.known[name] = &encoded{name: name, version: version}
			}
		}
	}
	return len(r.subscribe) > 0
}

// replace applies the names of a state-of-the-world request and reports
// whether they ask for more than before.
func (sub *subscription) replace(names []string) bool {
	wildcard, next := false, make(map[string]bool, len(names))
	for _, name := range names {
		if name == "*" {
			wildcard = true
		} else {
			next[name] = true
		}
	}
	sub.explicit = sub.explicit || len(names) > 0
	if !sub.explicit && wildcardByDefault(sub.typeURL) {
		wildcard = true
	}
	if wildcard == sub.wildcard && maps.Equal(next, sub.names) {
		return false
	}
	more := wildcard && !sub.wildcard
	for name := range next {
		if !sub.wants(name) {
			more = true
		}
	}
	sub.wildcard, sub.names = wildcard, next
	sub.forgetUnwanted()
	return more
}

func (sub *subscription) wants(name string) bool { return sub.wildcard || sub.names[name] }

func (sub *subscription) forgetUnwanted() {
	for name := range sub.known {
		if !sub.wants(name) {
			delete(sub.known, name)
			delete(sub.refused, name)
		}
	}
}

// offer begins a push: it puts set in force and returns additions and changes
// in make-before-break order. Resources that went away stay with the client
// until removals is called.
func (s *session) offer(set *resourceSet, now time.Time) []response {
	s.set = set
	var out []response
	var clusters []*encoded
	for _, sub := range s.ordered() {
		// A removal that was refused is tried again with every push.
		maps.DeleteFunc(sub.refused, func(_, version string) bool { return version == "" })
		o := options{}
		if sub.typeURL == endpointType && len(s.node.Caps) == 0 {
			o.again = clusters
		}
		resp, ok := s.compute(sub, o, now)
		if !ok {
			continue
		}
		if sub.typeURL == clusterType {
			clusters = resp.resources
		}
		out = append(out, resp)
	}
	s.settle()
	return out
}

// removals ends a push: it returns what went away. It returns nothing while a listener, route or cluster is refused or unanswered, because what
// the proxy then still uses may need what would be removed.
func (s *session) removals(now time.Time) []response {
	for _, t := range []string{clusterType, listenerType, routeType} {
		if sub := s.subs[t]; sub != nil && (len(sub.refused) > 0 || len(sub.inflight) > 0) {
			return nil
		}
	}
	var out []response
	for _, sub := range s.ordered() {
		if len(sub.refused) > 0 || len(sub.gone(s.set)) == 0 {
			continue
		}
		if resp, ok := s.compute(sub, options{remove: true}, now); ok {
			out = append(out, resp)
		}
	}
	return out
}

// leftovers reports whether the client has resources that went away.
func (s *session) leftovers() bool {
	for _, sub := range s.subs {
		if len(sub.gone(s.set)) > 0 {
			return true
		}
	}
	return false
}

// settle notes that everything in force is acknowledged, if it is.
func (s *session) settle() {
	if s.set == nil || s.unanswered() {
		return
	}
	for _, sub := range s.subs {
		if len(sub.refused) > 0 {
			return
		}
	}
	s.acked = max(s.acked, s.set.revision)
}

// ordered returns the subscriptions in push order.
func (s *session) ordered() []*subscription {
	out := make([]*subscription, 0, len(s.subs))
	for _, t := range pushOrder {
		if sub := s.subs[t]; sub != nil {
			out = append(out, sub)
		}
	}
	for _, t := range slices.Sorted(maps.Keys(s.subs)) {
		if !slices.Contains(pushOrder[:], t) {
			out = append(out, s.subs[t])
		}
	}
	return out
}

// gone returns the names of resources that the client has and set has not.
func (sub *subscription) gone(set *resourceSet) []string {
	var out []string
	for name, e := range sub.known {
		if e != absent && set.get(sub.typeURL, name) == nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

type options struct {
	force  bool       // respond even if there is nothing to say
	remove bool       // tell what went away
	again  []*encoded // resources of equal name are sent even if unchanged
}

// compute makes the response that brings a subscription to the set in force,
// and notes it as sent.
func (s *session) compute(sub *subscription, o options, now time.Time) (response, bool) {
	changed, missing := s.changes(sub, o.again)
	gone, keep := sub.gone(s.set), []string(nil)
	if !o.remove && sub.typeURL != listenerType {
		gone, keep = nil, gone
	}
	removed := slices.Concat(missing, gone)
	slices.Sort(removed)
	if len(changed) == 0 && len(removed) == 0 && !o.force {
		return response{}, false
	}
	if !s.delta && len(changed) == 0 && !o.force && !fullState(sub.typeURL) {
		// Only listeners and clusters can be seen to go away in this variant.
		sub.note(changed, removed)
		return response{}, false
	}
	resp := response{typeURL: sub.typeURL, version: strconv.FormatUint(s.set.revision, 10), resources: changed}
	switch {
	case s.delta:
		resp.removed = removed
	case fullState(sub.typeURL):
		resp.resources = s.all(sub, keep)
	}
	s.lastID++
	resp.nonce = strconv.FormatUint(s.lastID, 10)
	f := &flight{nonce: resp.nonce, sent: resp.resources, at: now}
	for _, name := range gone {
		f.gone = append(f.gone, sub.known[name])
	}
	sub.note(changed, removed)
	sub.inflight = append(sub.inflight, f)
	if len(sub.inflight) > maxFlights {
		sub.refuse(sub.inflight[0], "no answer", now)
		sub.inflight = sub.inflight[1:]
	}
	sub.version, sub.since = resp.version, now
	return resp, true
}

// note records what the client will have.
func (sub *subscription) note(changed []*encoded, removed []string) {
	for _, e := range changed {
		sub.known[e.name] = e
	}
	for _, name := range removed {
		delete(sub.refused, name)
		if sub.names[name] {
			sub.known[name] = absent
		} else {
			delete(sub.known, name)
		}
	}
}

// changes returns wanted resources that the client has not, sorted by name,
// and names it asked for that do not exist and that it was not told about.
func (s *session) changes(sub *subscription, again []*encoded) (changed []*encoded, missing []string) {
	repeat := make(map[string]bool, len(again))
	for _, e := range again {
		repeat[e.name] = true
	}
	retry := sub.mended(s.set)
	// The refusal of what no longer exists is moot.
	maps.DeleteFunc(sub.refused, func(name, version string) bool {
		return version != "" && s.set.get(sub.typeURL, name) == nil
	})
	check := func(name string, e *encoded) {
		known := sub.known[name]
		_, refused := sub.refused[name]
		switch {
		case known == nil || known.version != e.version, repeat[name], retry && refused:
			changed = append(changed, e)
		case known.any == nil: // from an earlier stream, unchanged
			sub.known[name] = e
		}
	}
	for name := range sub.names {
		if e := s.set.get(sub.typeURL, name); e != nil {
			check(name, e)
		} else if sub.known[name] == nil {
			missing = append(missing, name)
		}
	}
	if sub.wildcard {
		for name, e := range s.set.byType[sub.typeURL] {
			if !sub.names[name] {
				check(name, e)
			}
		}
	}
	slices.SortFunc(changed, func(a, b *encoded) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	slices.Sort(missing)
	return changed, missing
}

// mended reports whether a refused resource has changed or gone. Then all
// refused ones are sent again: the good ones among them were never accepted.
func (sub *subscription) mended(set *resourceSet) bool {
	for name, version := range sub.refused {
		now := ""
		if e := set.get(sub.typeURL, name); e != nil {
			now = e.version
		}
		if now != version {
			return true
		}
	}
	return false
}

// all returns every wanted resource, and of those that went away the ones in
// keep, as they were last sent.
func (s *session) all(sub *subscription, keep []string) []*encoded {
	var out []*encoded
	for name, e := range s.set.byType[sub.typeURL] {
		if sub.wants(name) {
			out = append(out, e)
		}
	}
	for _, name := range keep {
		if e := sub.known[name]; e.any != nil {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *encoded) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	return out
}
