package scenarios_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"lateen.dev/lateen/internal/control/translate"
	"lateen.dev/lateen/internal/testkit/scenario"
	"lateen.dev/lateen/internal/testkit/simrun"
)

// TestProperty_orderAndFilesDoNotMatter puts every object of a scenario into a
// file of its own, in any order: each proxy must be sent exactly the same, but
// for the places that origins point to.
func TestProperty_orderAndFilesDoNotMatter(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	shuffled := 0
	for _, s := range load(t) {
		plan, err := simrun.NewPlan(s)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			other := *s
			other.Files = split(s.Files)
			random.Shuffle(len(other.Files), func(i, j int) { other.Files[i], other.Files[j] = other.Files[j], other.Files[i] })
			if len(other.Files) < 2 {
				break
			}
			shuffled++
			again, err := simrun.NewPlan(&other)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range differences(plan, again) {
				t.Errorf("%s: with its objects in the order %v: %s", s.Name, names(other.Files), d)
			}
		}
	}
	if shuffled < 30 {
		t.Errorf("only %d shuffles: too few scenarios have two objects", shuffled)
	}
}

// split puts each YAML document into a file of its own.
func split(files []scenario.File) []scenario.File {
	var out []scenario.File
	for _, f := range files {
		for i, doc := range strings.Split(string(f.Data), "\n---\n") {
			out = append(out, scenario.File{Name: fmt.Sprintf("%d-%s", i, f.Name), Data: []byte(doc + "\n")})
		}
	}
	return out
}

func names(files []scenario.File) []string {
	var out []string
	for _, f := range files {
		out = append(out, f.Name)
	}
	return out
}

// differences lists the resources that two plans do not have in common.
func differences(a, b *simrun.Plan) []string {
	var out []string
	for _, pod := range slices.Sorted(maps.Keys(a.Sent)) {
		for typ, set := range a.Sent[pod].ByType {
			if typ == translate.OriginType {
				continue
			}
			others := b.Sent[pod].ByType[typ]
			if len(others) != len(set) {
				out = append(out, fmt.Sprintf("%s: %d %s instead of %d", pod, len(others), typ, len(set)))
			}
			for name, m := range set {
				if others[name] == nil || !proto.Equal(m, others[name]) {
					out = append(out, fmt.Sprintf("%s: %s %s differs", pod, typ, name))
				}
			}
		}
	}
	return out
}
