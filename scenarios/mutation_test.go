package scenarios_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/testkit/scenario"
	"lateen.dev/lateen/internal/testkit/simrun"
)

// A mutation is one field of one xDS message type, cleared everywhere, or one
// filter taken out of every chain. The check clears each field that translation
// sets in any scenario and demands that some scenario fails; mutation.txt lists
// those that simulation cannot notice, each with its reason.

// field names a mutation: "envoy.config.route.v3.RouteAction.timeout".
func field(fd protoreflect.FieldDescriptor) string {
	return strings.TrimPrefix(string(fd.FullName()), "envoy.")
}

// visit walks m, Any messages unpacked, and calls see with each set field. When
// see returns true the field is cleared. It returns whether anything changed.
func visit(m protoreflect.Message, see func(protoreflect.FieldDescriptor) bool) bool {
	if any, ok := m.Interface().(*anypb.Any); ok {
		return visitAny(any, see)
	}
	changed := false
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if see(fd) {
			m.Clear(fd)
			changed = true
			return true
		}
		each(fd, v, func(child protoreflect.Message) { changed = visit(child, see) || changed })
		return true
	})
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

func visitAny(any *anypb.Any, see func(protoreflect.FieldDescriptor) bool) bool {
	inner, err := any.UnmarshalNew()
	if err != nil || !visit(inner.ProtoReflect(), see) {
		return false
	}
	packed, err := proto.MarshalOptions{Deterministic: true}.Marshal(inner)
	if err != nil {
		panic(err) // what was decoded can be encoded
	}
	any.Value = packed
	return true
}

// eachMessage walks all xDS resources but the tables of names and origins.
func eachMessage(r *translate.Resources, f func(set map[string]proto.Message, name string)) {
	for typ, set := range r.ByType {
		if typ == translate.NameType || typ == translate.OriginType {
			continue
		}
		for name := range set {
			f(set, name)
		}
	}
}

func fieldsOf(scenarios []*scenario.Scenario) []string {
	found := map[string]bool{}
	for _, s := range scenarios {
		simrun.RunMutated(s, func(r *translate.Resources) {
			eachMessage(r, func(set map[string]proto.Message, name string) {
				visit(set[name].ProtoReflect(), func(fd protoreflect.FieldDescriptor) bool {
					found[field(fd)] = true
					return false
				})
			})
		})
	}
	return slices.Sorted(maps.Keys(found))
}

// clear returns the mutation that clears one field. Resources may be shared
// between proxies and runs, so changed ones are copies.
func clearField(target string) func(*translate.Resources) {
	return func(r *translate.Resources) {
		eachMessage(r, func(set map[string]proto.Message, name string) {
			c := proto.Clone(set[name])
			if visit(c.ProtoReflect(), func(fd protoreflect.FieldDescriptor) bool { return field(fd) == target }) {
				set[name] = c
			}
		})
	}
}

func TestMutation_everyTranslatedFieldIsNoticed(t *testing.T) {
	if os.Getenv("LATEEN_MUTATION") == "" {
		t.Skip("skipped: takes minutes; `make mutation` runs it")
	}
	all := load(t)
	runnable := slices.DeleteFunc(all, func(s *scenario.Scenario) bool { return s.Only == "live" })
	excused := excuses(t)
	var survived []string
	fields := fieldsOf(runnable)
	for _, f := range fields {
		if _, ok := excused[f]; ok {
			delete(excused, f)
			continue
		}
		if !noticed(runnable, f) {
			survived = append(survived, f)
		}
	}
	for _, f := range survived {
		t.Errorf("no scenario notices that %s is switched off: write one, or give the reason in mutation.txt", f)
	}
	for f := range excused {
		t.Errorf("mutation.txt excuses %s, which no scenario makes translation set", f)
	}
	t.Logf("%d fields, %d noticed", len(fields), len(fields)-len(survived))
}

// noticed says whether some scenario fails with a field cleared. Scenarios that
// noticed something before are tried first.
func noticed(scenarios []*scenario.Scenario, target string) bool {
	mutate := clearField(target)
	for i, s := range scenarios {
		if len(runSafely(s, mutate)) > 0 {
			scenarios[0], scenarios[i] = scenarios[i], scenarios[0]
			return true
		}
	}
	return false
}

// runSafely counts a panic as noticing.
func runSafely(s *scenario.Scenario, mutate func(*translate.Resources)) (errs []error) {
	defer func() {
		if p := recover(); p != nil {
			errs = []error{fmt.Errorf("panic: %v", p)}
		}
	}()
	return simrun.RunMutated(s, mutate)
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
