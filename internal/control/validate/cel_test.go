package validate

import (
	"encoding/json"
	"math/rand/v2"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"
)

// celEnv evaluates rules as a Kubernetes API server does: CEL with its string
// extension and Kubernetes' functions on URLs.
func celEnv(t *testing.T) *cel.Env {
	t.Helper()
	parse := func(v ref.Val) (*url.URL, error) { return url.ParseRequestURI(string(v.(types.String))) }
	env, err := cel.NewEnv(
		cel.Variable("self", cel.DynType), ext.Strings(),
		cel.Function("isURL", cel.Overload("is_url", []*cel.Type{cel.StringType}, cel.BoolType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			_, err := parse(v)
			return types.Bool(err == nil)
		}))),
		cel.Function("url", cel.Overload("url", []*cel.Type{cel.StringType}, cel.StringType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			if _, err := parse(v); err != nil {
				return types.NewErr("no URL: %v", err)
			}
			return v
		}))),
		cel.Function("getScheme", cel.MemberOverload("scheme", []*cel.Type{cel.StringType}, cel.StringType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			u, err := parse(v)
			if err != nil {
				return types.NewErr("no URL: %v", err)
			}
			return types.String(u.Scheme)
		}))),
	)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// words are values at the edges of the rules.
var ruleWords = []string{
	"", "*", "a*b", "HTTP", "HTTPS", "TCP", "NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "HOST", "INLINE", "UPSERT", "REMOVE",
	"WAYPOINT", "ANY", "1ms", "999us", "0s", "1h", "-1s", "unix://", "unix:///a", "unix:///a/", "unix://@a", "unix://x", "10.0.0.0/8", "10.0.0.1",
	"http://a", "https://a/b", "oci://a/b:1", "file:///a", "ftp://a", "a/b:1", "a.com:5000/x", "://", "a b", "http://a b", "%", "/x", "localhost:80",
	"a-b", "-a", "0", "1", "65535", "65536", "x1",
	"aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgg", "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggg",
}

var literal = regexp.MustCompile(`"([^"]*)"`)

var ruleField = regexp.MustCompile(`self\.([a-z]\w*)\b`)

// celValue makes a value that a rule could be about: its kind is told by how the
// rule speaks of self.
func celValue(r *rand.Rand, rule string, fields []string) any {
	word := func() string {
		if said := literal.FindAllStringSubmatch(rule, -1); len(said) > 0 && r.IntN(2) == 0 {
			return said[r.IntN(len(said))][1]
		}
		return ruleWords[r.IntN(len(ruleWords))]
	}
	switch {
	case strings.HasPrefix(rule, "duration("): // what is no duration, decoding reports
		return []string{"1ms", "999us", "0s", "1h", "-1s", "1.5s"}[r.IntN(6)]
	case regexp.MustCompile(`^self\.all\(key`).MatchString(rule):
		m := map[string]any{}
		for range r.IntN(3) {
			m[word()] = "v"
		}
		return m
	case regexp.MustCompile(`^self\.all\(l1`).MatchString(rule):
		l := []any{}
		for range r.IntN(4) {
			l = append(l, map[string]any{"number": int64(r.IntN(3))})
		}
		return l
	case rule == "0 < self && self <= 65535":
		return []int64{-1, 0, 1, 80, 65535, 65536, 1 << 31}[r.IntN(7)]
	case len(fields) == 0:
		return word()
	}
	m := map[string]any{}
	for _, f := range fields {
		if r.IntN(2) == 0 {
			continue
		}
		switch f {
		case "addresses":
			m[f] = []any{word(), word()}[:r.IntN(3)]
		case "endpoints":
			m[f] = []any{map[string]any{}, map[string]any{}}[:r.IntN(3)]
		case "selector":
			m[f] = []any{map[string]any{}, map[string]any{"matchLabels": map[string]any{}}, map[string]any{"matchLabels": map[string]any{"a": "b"}}}[r.IntN(3)]
		case "ports", "portLevelMtls":
			m[f] = map[string]any{"1": "x"}
		default:
			m[f] = word()
		}
	}
	return m
}

// asDecoded gives a value the Go types that decoding YAML gives it.
func asDecoded(v any) any {
	switch v := v.(type) {
	case int64:
		return json.Number(strconv.FormatInt(v, 10))
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = asDecoded(v[i])
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for k := range v {
			out[k] = asDecoded(v[k])
		}
		return out
	}
	return v
}

// TestCRDs_rulesMeanWhatTheirCELSays compares every rule's Go form with what CEL
// makes of its text. A rule that CEL cannot evaluate refuses, as on Kubernetes.
func TestCRDs_rulesMeanWhatTheirCELSays(t *testing.T) {
	env := celEnv(t)
	seen := map[string]bool{}
	var visit func(k *constraint)
	visit = func(k *constraint) {
		for _, r := range k.Rules {
			if !seen[r.Rule] {
				seen[r.Rule] = true
				compareRule(t, env, r)
			}
		}
		for _, f := range k.Fields {
			visit(f)
		}
		if k.Each != nil {
			visit(k.Each)
		}
	}
	for _, k := range crds() {
		visit(k)
	}
	if len(seen) < 30 {
		t.Errorf("only %d rules compared", len(seen))
	}
}

func compareRule(t *testing.T, env *cel.Env, r rule) {
	t.Helper()
	ast, issues := env.Compile(r.Rule)
	if issues.Err() != nil {
		t.Errorf("%s: %v", r.Rule, issues.Err())
		return
	}
	program, err := env.Program(ast)
	if err != nil {
		t.Errorf("%s: %v", r.Rule, err)
		return
	}
	var fields []string
	for _, m := range ruleField.FindAllStringSubmatch(r.Rule, -1) {
		if !slices.Contains([]string{"all", "contains", "size", "startsWith", "endsWith", "substring", "exists"}, m[1]) && !slices.Contains(fields, m[1]) {
			fields = append(fields, m[1])
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	outcomes := map[bool]int{}
	for range 1000 {
		v := celValue(random, r.Rule, fields)
		out, _, err := program.Eval(map[string]any{"self": v})
		want := err == nil && out == types.True
		outcomes[want]++
		if got := r.holds(asDecoded(v)); got != want {
			t.Errorf("%s\n\tof %#v: Go says %v, CEL %v (%v)", r.Rule, v, got, want, err)
			return
		}
	}
	if outcomes[true] == 0 || outcomes[false] == 0 {
		t.Errorf("%s: the values never told true from false: %v", r.Rule, outcomes)
	}
}
