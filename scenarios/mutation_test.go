package scenarios_test

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/testkit/scenario"
	"lateen.dev/lateen/internal/testkit/simrun"
)

// A mutation is one field of one xDS message type, cleared everywhere, or one
// filter taken out of every chain. The check carries out each mutation that
// changes anything in some scenario and demands that one of these scenarios
// fails; mutation.txt lists those that simulation cannot notice, each with its
// reason.

// edit may clear fields and drop elements of the messages that it is shown.
type edit struct {
	// field reports whether to clear a set field.
	field func(protoreflect.FieldDescriptor) bool
	// filter reports whether to drop an element of a list of filters.
	filter func(name string) bool
}

// fieldName names a mutation: "config.route.v3.RouteAction.timeout".
func fieldName(fd protoreflect.FieldDescriptor) string {
	return strings.TrimPrefix(string(fd.FullName()), "envoy.")
}

// ours reports whether a field is one of xDS: the wrappers and structs of
// google.protobuf are values, cleared with the field that holds them.
func ours(fd protoreflect.FieldDescriptor) bool {
	return fd.ParentFile().Package() != "google.protobuf"
}

// visit walks m, Any messages unpacked, and returns whether anything changed.
func (e edit) visit(m protoreflect.Message) bool {
	if any, ok := m.Interface().(*anypb.Any); ok {
		return e.visitAny(any)
	}
	changed := false
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if ours(fd) && e.field(fd) {
			m.Clear(fd)
			changed = true
			return true
		}
		if fd.IsList() && strings.HasSuffix(string(fd.Name()), "filters") && e.dropFilters(v.List()) {
			changed = true
		}
		each(fd, v, func(child protoreflect.Message) { changed = e.visit(child) || changed })
		return true
	})
	return changed
}

// dropFilters takes elements out of a list of HTTP, network or listener filters.
func (e edit) dropFilters(list protoreflect.List) bool {
	kept := 0
	for i := range list.Len() {
		m := list.Get(i).Message()
		name := m.Descriptor().Fields().ByName("name")
		if name != nil && e.filter(m.Get(name).String()) {
			continue
		}
		list.Set(kept, list.Get(i))
		kept++
	}
	changed := kept < list.Len()
	list.Truncate(kept)
	return changed
}

// each calls f with the messages in a field's value.
func each(fd protoreflect.FieldDescriptor, v protoreflect.Value, f func(protoreflect.Message)) {
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() != nil {
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { f(v.Message()); return true })
		}
	case fd.Message() == nil:
	case fd.IsList():
		for i := range v.List().Len() {
			f(v.List().Get(i).Message())
		}
	default:
		f(v.Message())
	}
}

func (e edit) visitAny(any *anypb.Any) bool {
	inner, err := any.UnmarshalNew()
	if err != nil || !e.visit(inner.ProtoReflect()) {
		return false
	}
	packed, err := proto.MarshalOptions{Deterministic: true}.Marshal(inner)
	if err != nil {
		panic(err) // what was decoded can be encoded
	}
	any.Value = packed
	return true
}

// subject is a scenario with the mutations that its resources allow.
type subject struct {
	plan  *simrun.Plan
	limit int
	// where lists the messages that each mutation changes.
	where map[string][]place
}

// place is one message of one proxy.
type place struct{ pod, typ, name string }

// callLimit is how often a call is repeated under mutation: enough for shares.
const callLimit = 200

func newSubject(t *testing.T, s *scenario.Scenario) *subject {
	plan, err := simrun.NewPlan(s)
	if err != nil {
		t.Fatal(err)
	}
	u := &subject{plan: plan, limit: callLimit, where: map[string][]place{}}
	for pod, r := range plan.Sent {
		for typ, set := range r.ByType {
			if typ == translate.NameType || typ == translate.OriginType {
				continue
			}
			for name, m := range set {
				for _, mutation := range mutationsOf(m) {
					u.where[mutation] = append(u.where[mutation], place{pod, typ, name})
				}
			}
		}
	}
	if err := plan.FirstFailure(plan.Sent, u.limit); err != nil {
		u.limit = 1 << 20 // its shares need every request
	}
	return u
}

// mutationsOf lists the mutations that change a message.
func mutationsOf(m proto.Message) []string {
	found := map[string]bool{}
	e := edit{
		field:  func(fd protoreflect.FieldDescriptor) bool { found[fieldName(fd)] = true; return false },
		filter: func(name string) bool { found[filterPrefix+name] = true; return false },
	}
	e.visit(m.ProtoReflect())
	return slices.Collect(maps.Keys(found))
}

// filterPrefix begins the name of a mutation that takes out a filter.
const filterPrefix = "filter "

// mutated returns what the proxies are sent under a mutation. Messages that
// change are copies, as others use them too.
func (u *subject) mutated(mutation string) map[string]*translate.Resources {
	e := edit{
		field:  func(fd protoreflect.FieldDescriptor) bool { return fieldName(fd) == mutation },
		filter: func(name string) bool { return filterPrefix+name == mutation },
	}
	sent := map[string]*translate.Resources{}
	for pod, r := range u.plan.Sent {
		c := &translate.Resources{ByType: map[string]map[string]proto.Message{}}
		for typ, set := range r.ByType {
			c.ByType[typ] = maps.Clone(set)
		}
		sent[pod] = c
	}
	for _, p := range u.where[mutation] {
		set := sent[p.pod].ByType[p.typ]
		c := proto.Clone(set[p.name])
		e.visit(c.ProtoReflect())
		set[p.name] = c
	}
	return sent
}

// notices says whether the scenario fails under a mutation. A panic is noticed.
func (u *subject) notices(mutation string) (noticed bool) {
	defer func() {
		if p := recover(); p != nil {
			noticed = true
		}
	}()
	return u.plan.FirstFailure(u.mutated(mutation), u.limit) != nil
}

func TestMutation_everyTranslatedFieldIsNoticed(t *testing.T) {
	t.Parallel()
	var subjects []*subject
	byMutation := map[string][]*subject{}
	for _, s := range load(t) {
		if s.Only == "live" {
			continue
		}
		u := newSubject(t, s)
		subjects = append(subjects, u)
		for m := range u.where {
			byMutation[m] = append(byMutation[m], u)
		}
	}
	excused := excuses(t)
	for m := range excused {
		if byMutation[m] == nil {
			t.Errorf("mutation.txt excuses %s, which no scenario makes translation set", m)
		}
	}
	all := slices.DeleteFunc(slices.Sorted(maps.Keys(byMutation)), func(m string) bool { return excused[m] != "" })
	survived := survivors(all, byMutation)
	for _, m := range survived {
		t.Errorf("no scenario notices that %s is switched off: write one, or give the reason in mutation.txt", m)
	}
	t.Logf("%d scenarios, %d mutations, %d noticed, %d excused", len(subjects), len(byMutation), len(all)-len(survived), len(excused))
}

// survivors tries each mutation on the scenarios that it changes, those in which
// it changes least elsewhere first, on two goroutines.
func survivors(all []string, byMutation map[string][]*subject) []string {
	work := make(chan string)
	var mu sync.Mutex
	var out []string
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for m := range work {
				if !noticed(m, byMutation[m]) {
					mu.Lock()
					out = append(out, m)
					mu.Unlock()
				}
			}
		})
	}
	for _, m := range all {
		work <- m
	}
	close(work)
	wg.Wait()
	slices.Sort(out)
	return out
}

func noticed(mutation string, subjects []*subject) bool {
	// A scenario with few calls is cheap to ask.
	slices.SortFunc(subjects, func(a, b *subject) int {
		return cmp.Or(cmp.Compare(a.cost(), b.cost()), strings.Compare(a.plan.Scenario.Name, b.plan.Scenario.Name))
	})
	return slices.ContainsFunc(subjects, func(u *subject) bool { return u.notices(mutation) })
}

// cost is the number of requests of a run.
func (u *subject) cost() int {
	n := 0
	for _, c := range u.plan.Scenario.Calls {
		n += min(c.Times, u.limit)
	}
	return n
}

func excuses(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile("mutation.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, why, ok := strings.Cut(line, ": ")
		if !ok || len(why) < 15 {
			t.Errorf("mutation.txt: %q gives no reason", line)
		}
		out[name] = why
	}
	return out
}
