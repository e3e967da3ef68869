package validate

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

//go:embed constraints.json
var constraintsJSON []byte

// constraint is what a CustomResourceDefinition demands of one value besides
// its type.
type constraint struct {
	Required                     []string               `json:"required"`
	Minimum, Maximum             *float64               `json:",omitempty"`
	MinLength, MaxLength         *int                   `json:",omitempty"`
	MinItems, MaxItems           *int                   `json:",omitempty"`
	MinProperties, MaxProperties *int                   `json:",omitempty"`
	Pattern                      string                 `json:"pattern"`
	Unique                       []string               `json:"unique"`
	Rules                        []rule                 `json:"rules"`
	Fields                       map[string]*constraint `json:"fields"`
	Each                         *constraint            `json:"each"`

	pattern *regexp.Regexp
}

// rule is one validation rule of a CustomResourceDefinition. Its text is CEL;
// the few dozen there are stand in Go in ruleFor.
type rule struct {
	Rule    string `json:"rule"`
	Message string `json:"message"`
	holds   func(any) bool
}

// crds is parsed once and never changes.
var crds = sync.OnceValue(func() map[string]*constraint {
	var all map[string]*constraint
	if err := json.Unmarshal(constraintsJSON, &all); err != nil {
		panic("validate: constraints.json: " + err.Error())
	}
	for _, c := range all {
		c.compile()
	}
	return all
})

func (k *constraint) compile() {
	if k.Pattern != "" {
		k.pattern = regexp.MustCompile(k.Pattern)
	}
	for i := range k.Rules {
		k.Rules[i].holds = ruleFor(k.Rules[i].Rule)
	}
	for _, f := range k.Fields {
		f.compile()
	}
	if k.Each != nil {
		k.Each.compile()
	}
}

// constraints checks the object against its CustomResourceDefinition.
func (c *checker) constraints() {
	k := crds()[string(c.o.Kind)]
	if k == nil {
		return
	}
	spec, _ := c.o.Tree()["spec"].(map[string]any)
	if spec == nil {
		spec = map[string]any{}
	}
	c.constrain(k, spec, "spec")
}

func (c *checker) constrain(k *constraint, v any, path string) {
	switch v := v.(type) {
	case map[string]any:
		c.constrainMap(k, v, path)
	case []any:
		c.count(path, len(v), k.MinItems, k.MaxItems, "entries")
		c.uniqueBy(k.Unique, v, path)
		if k.Each != nil {
			for i, item := range v {
				c.constrain(k.Each, item, resource.Item(path, i))
			}
		}
	case string:
		c.count(path, utf8.RuneCountInString(v), k.MinLength, k.MaxLength, "characters")
		if k.pattern != nil && !k.pattern.MatchString(v) {
			c.addValue(finding.OutOfRange, path, "", "%s is %q; it must match %s", path, v, k.Pattern)
		}
	case json.Number, float64:
		c.inRange(k, v, path)
	}
	for _, r := range k.Rules {
		if !r.holds(v) {
			c.addValue(finding.CRDRule, path, "", "%s: %s", path, r.Message)
		}
	}
}

func (c *checker) constrainMap(k *constraint, v map[string]any, path string) {
	for _, name := range k.Required {
		if _, ok := v[name]; !ok && !c.spelled(path, name) {
			c.add(finding.RequiredField, path, "", "%s has no %s, which is required", path, name)
		}
	}
	c.count(path, len(v), k.MinProperties, k.MaxProperties, "entries")
	keys := make([]string, 0, len(v))
	for name := range v {
		keys = append(keys, name)
	}
	slices.Sort(keys)
	for _, name := range keys {
		child := k.Fields[name]
		if child == nil {
			child = k.Each
		}
		if child != nil {
			c.constrain(child, v[name], resource.Field(path, name))
		}
	}
}

// uniqueBy checks that no two members of a list have the same keys.
func (c *checker) uniqueBy(keys []string, items []any, path string) {
	if len(keys) == 0 {
		return
	}
	seen := map[string]bool{}
	for i, item := range items {
		m, _ := item.(map[string]any)
		id := ""
		for _, k := range keys {
			id += fmt.Sprint(m[k], "\x00")
		}
		if seen[id] {
			c.add(finding.OutOfRange, resource.Item(path, i), "", "%s has two entries with the same %s", path, strings.Join(keys, ", "))
		}
		seen[id] = true
	}
}

// spelled reports whether the manifest has the field, though with a value that
// was reported and left out.
func (c *checker) spelled(path, name string) bool {
	p := c.o.Find(resource.Field(path, name))
	return p.Exact && p.Value != nil && p.Value.ShortTag() != "!!null"
}

func (c *checker) count(path string, n int, lo, hi *int, what string) {
	if lo != nil && n < *lo {
		c.addValue(finding.OutOfRange, path, "", "%s has %d %s; at least %d are needed", path, n, what, *lo)
	}
	if hi != nil && n > *hi {
		c.addValue(finding.OutOfRange, path, "", "%s has %d %s; at most %d are allowed", path, n, what, *hi)
	}
}

func (c *checker) inRange(k *constraint, v any, path string) {
	f, ok := number(v)
	if !ok {
		return
	}
	lo, hi := math.Inf(-1), math.Inf(1)
	if k.Minimum != nil {
		lo = *k.Minimum
	}
	if k.Maximum != nil {
		hi = *k.Maximum
	}
	switch {
	case f >= lo && f <= hi:
	case math.IsInf(hi, 1):
		c.addValue(finding.OutOfRange, path, "", "%s is %v; it must be at least %v", path, v, lo)
	case math.IsInf(lo, -1):
		c.addValue(finding.OutOfRange, path, "", "%s is %v; it must be at most %v", path, v, hi)
	default:
		c.addValue(finding.OutOfRange, path, "", "%s is %v; it must be from %v to %v", path, v, lo, hi)
	}
}

func number(v any) (float64, bool) {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	case float64:
		return v, true
	}
	return 0, false
}

// onlyOne matches the rules that allow at most one of some fields.
var onlyOne = regexp.MustCompile(`^(?:\(has\(self\.\w+\) \? 1 : 0\)(?: \+ )?)+ <= 1$`)

var hasField = regexp.MustCompile(`has\(self\.(\w+)\)`)

// ruleFor returns the Go form of a rule. It panics on a rule it does not know,
// which the tests meet when the definitions change.
func ruleFor(text string) func(any) bool {
	if onlyOne.MatchString(text) {
		var names []string
		for _, m := range hasField.FindAllStringSubmatch(text, -1) {
			names = append(names, m[1])
		}
		return func(v any) bool { return countFields(v, names) <= 1 }
	}
	for prefix, holds := range rules() {
		if strings.HasPrefix(text, prefix) {
			return holds
		}
	}
	panic("validate: no Go form of the rule " + text)
}

func countFields(v any, names []string) int {
	n := 0
	for _, name := range names {
		if has(v, name) {
			n++
		}
	}
	return n
}

func has(v any, name string) bool {
	m, _ := v.(map[string]any)
	_, ok := m[name]
	return ok
}

func str(v any, name, def string) string {
	m, _ := v.(map[string]any)
	if s, ok := m[name].(string); ok {
		return s
	}
	return def
}

func list(v any, name string) []any {
	m, _ := v.(map[string]any)
	l, _ := m[name].([]any)
	return l
}

func object(v any, name string) map[string]any {
	m, _ := v.(map[string]any)
	o, _ := m[name].(map[string]any)
	return o
}

func text(holds func(string) bool) func(any) bool {
	return func(v any) bool {
		s, ok := v.(string)
		return !ok || holds(s)
	}
}

func keys(holds func(string) bool) func(any) bool {
	return func(v any) bool {
		m, _ := v.(map[string]any)
		for k := range m {
			if !holds(k) {
				return false
			}
		}
		return true
	}
}

var portName = regexp.MustCompile("^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$")

// rules maps the beginning of a rule's text, no beginning of another, to its
// meaning. Values of another type than the rule is about were reported by
// decoding and hold.
func rules() map[string]func(any) bool {
	return map[string]func(any) bool{
		`duration(self) >= duration('1ms')`: text(func(s string) bool {
			d, err := time.ParseDuration(s)
			return err != nil || d >= time.Millisecond
		}),
		`0 < self && self <= 65535`: func(v any) bool { f, ok := number(v); return !ok || f > 0 && f <= 65535 },
		`!self.contains("*")`:       text(func(s string) bool { return !strings.Contains(s, "*") }),
		`self.size() == 0`:          text(func(s string) bool { return s == "" }),
		`self != "*"`:               text(func(s string) bool { return s != "*" }),
		`self in ["", "HTTP", "HTTPS"]`: text(func(s string) bool {
			return s == "" || s == "HTTP" || s == "HTTPS"
		}),
		`self.all(key, !key.contains("*"))`: keys(func(k string) bool { return !strings.Contains(k, "*") }),
		`self.all(key, key.size() != 0)`:    keys(func(k string) bool { return k != "" }),
		`self.all(key, size(key) < 63`:      keys(func(k string) bool { return len(k) < 63 && portName.MatchString(k) }),
		`self.all(key, 0 < int(key)`: keys(func(k string) bool {
			n, err := strconv.Atoi(k)
			return err == nil && n > 0 && n <= 65535
		}),
		`self.all(l1, self.exists_one(l2, l1.number == l2.number))`: uniqueNumbers,
		`self.startsWith("unix://") ? (self.substring(7, 8)`: text(func(s string) bool {
			rest, unix := strings.CutPrefix(s, "unix://")
			return !unix || strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, "@")
		}),
		`self.startsWith("unix://") ? !self.endsWith("/")`: text(func(s string) bool {
			return !strings.HasPrefix(s, "unix://") || !strings.HasSuffix(s, "/")
		}),
		`(has(self.address) ? self.address : "").startsWith("unix://") ? !has(self.ports)`: func(v any) bool {
			return !strings.HasPrefix(str(v, "address", ""), "unix://") || !has(v, "ports")
		},
		`has(self.address) || has(self.network)`: func(v any) bool { return has(v, "address") || has(v, "network") },
		`url(self).getScheme() in ["http", "https"]`: text(func(s string) bool {
			u, err := url.ParseRequestURI(s)
			return err == nil && (u.Scheme == "http" || u.Scheme == "https")
		}),
		`isURL(self) ? (url(self).getScheme() in ["", "http", "https", `: text(moduleURL),
		`!((has(self.addresses) ? self.addresses : []).exists(k, k.contains("/"))`: func(v any) bool {
			cidr := slices.ContainsFunc(list(v, "addresses"), func(a any) bool {
				s, _ := a.(string)
				return strings.Contains(s, "/")
			})
			r := str(v, "resolution", "NONE")
			return !cidr || r == "STATIC" || r == "NONE"
		},
		`((has(self.resolution) ? self.resolution : "NONE") == "NONE") ? !has(self.endpoints)`: func(v any) bool {
			return str(v, "resolution", "NONE") != "NONE" || !has(v, "endpoints")
		},
		`((has(self.resolution) ? self.resolution : "") == "DNS_ROUND_ROBIN")`: func(v any) bool {
			return str(v, "resolution", "") != "DNS_ROUND_ROBIN" || len(list(v, "endpoints")) <= 1
		},
		`(has(self.valueFrom) ? self.valueFrom : "") != "HOST" || !has(self.value)`: func(v any) bool {
			return str(v, "valueFrom", "") != "HOST" || !has(v, "value")
		},
		`(has(self.serviceAccounts) || has(self.notServiceAccounts))`: func(v any) bool {
			return countFields(v, []string{"serviceAccounts", "notServiceAccounts"}) == 0 ||
				countFields(v, []string{"principals", "notPrincipals", "namespaces", "notNamespaces"}) == 0
		},
		`has(self.portLevelMtls) ? `: func(v any) bool {
			return !has(v, "portLevelMtls") || len(object(object(v, "selector"), "matchLabels")) > 0
		},
		`((has(self.operation) ? self.operation : "") == "UPSERT")`: func(v any) bool {
			return str(v, "operation", "") != "UPSERT" || str(v, "value", "") != ""
		},
		`((has(self.operation) ? self.operation : "") == "REMOVE")`: func(v any) bool {
			return str(v, "operation", "") != "REMOVE" || !has(v, "value")
		},
		`has(self.wasm) != has(self.lua)`: func(v any) bool { return has(v, "wasm") != has(v, "lua") },
		`has(self.context) ? `: func(v any) bool {
			return (str(v, "context", "") == "WAYPOINT") == has(v, "waypoint")
		},
	}
}

func uniqueNumbers(v any) bool {
	items, _ := v.([]any)
	seen := map[string]bool{}
	for _, item := range items {
		m, _ := item.(map[string]any)
		n := fmt.Sprint(m["number"])
		if seen[n] {
			return false
		}
		seen[n] = true
	}
	return true
}

// moduleURL accepts what a Wasm module may be fetched from: a URL, or an image
// name without a scheme. As on Kubernetes, "host:5000/image" has the scheme
// "host", and is refused.
func moduleURL(s string) bool {
	u, err := url.ParseRequestURI(s)
	if err != nil {
		_, err := url.ParseRequestURI("http://" + s)
		return err == nil
	}
	return slices.Contains([]string{"", "http", "https", "file", "oci"}, u.Scheme)
}
