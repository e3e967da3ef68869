package validate

import (
	"net/netip"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

var (
	dnsLabel    = regexp.MustCompile(`^[a-zA-Z0-9_]([-a-zA-Z0-9_]*[a-zA-Z0-9_])?$`)
	labelValue  = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$`)
	labelName   = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
	headerToken = regexp.MustCompile("^[!#$%&'*+\\-.^_`|~0-9A-Za-z]+$")
)

// validHost reports whether s is a DNS name, optionally with a leading "*.",
// or "*" alone.
func validHost(s string) bool {
	if s == "*" {
		return true
	}
	s = strings.TrimPrefix(s, "*.")
	if s == "" || len(s) > 253 {
		return false
	}
	for _, l := range strings.Split(strings.TrimSuffix(s, "."), ".") {
		if len(l) > 63 || !dnsLabel.MatchString(l) {
			return false
		}
	}
	return true
}

// host reports a host that is neither a DNS name nor, where allowed, an address.
func (c *checker) host(path, h string) {
	if h == "" {
		c.addValue(finding.InvalidHost, path, "", "%s is empty", path)
		return
	}
	if _, err := netip.ParseAddr(h); err == nil || validHost(h) {
		return
	}
	hint := ""
	switch {
	case strings.Contains(h, "://"):
		hint = "write the host name alone, without a scheme"
	case strings.Contains(h, ":"):
		hint = "write the host name alone; ports have their own field"
	case strings.Contains(h, "*"):
		hint = `a wildcard is "*" alone or stands in front: "*.example.com"`
	}
	c.addValue(finding.InvalidHost, path, hint, "%q is not a valid host name", h)
}

const (
	// maxRegexProgram is Envoy's bound on the size of a compiled RE2 program.
	maxRegexProgram = 100
	// warnRegexProgram is where a regex is large enough to be a mistake. RE2 runs
	// in linear time, so a large one costs memory rather than safety.
	warnRegexProgram = 4 * maxRegexProgram
	maxRegexLength   = 1024
)

// regex reports an expression that RE2 refuses or that compiles to something
// enormous.
func (c *checker) regex(path, expr string) {
	if expr == "" {
		c.addValue(finding.InvalidRegex, path, "write an expression, or .* for everything", "the regular expression is empty")
		return
	}
	if len(expr) > maxRegexLength {
		c.addValue(finding.InvalidRegex, path, "shorten it, or use several match entries", "the regular expression has %d characters; at most %d are allowed", len(expr), maxRegexLength)
		return
	}
	tree, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		hint := "mend the expression; its syntax is RE2's (https://github.com/google/re2/wiki/Syntax)"
		if strings.Contains(expr, "(?=") || strings.Contains(expr, "(?!") || strings.Contains(expr, "(?<") {
			hint = "RE2 has no look-around; use several match entries or withoutHeaders"
		}
		c.addValue(finding.InvalidRegex, path, hint, "RE2 does not accept %q: %v", expr, regexError(err))
		return
	}
	prog, err := syntax.Compile(tree.Simplify())
	if err != nil {
		c.addValue(finding.InvalidRegex, path, "shorten it", "RE2 does not accept %q: %v", expr, err)
		return
	}
	switch n := len(prog.Inst); {
	case n > 100*maxRegexProgram:
		c.addValue(finding.InvalidRegex, path, "shorten the counted repetitions",
			"%q compiles to %d instructions; at most %d are allowed", expr, n, 100*maxRegexProgram)
	case n > warnRegexProgram:
		c.addValue(finding.LargeRegex, path, "shorten the counted repetitions",
			"%q compiles to %d instructions; Envoy warns above %d", expr, n, maxRegexProgram)
	}
}

func regexError(err error) string {
	return strings.TrimPrefix(err.Error(), "error parsing regexp: ")
}

func (c *checker) labels(path string, labels map[string]string) {
	for _, k := range sorted(labels) {
		at := resource.Field(path, k)
		name := k
		if prefix, rest, ok := strings.Cut(k, "/"); ok {
			name = rest
			if !validHost(prefix) {
				c.add(finding.InvalidLabel, at, "", "label %q has an invalid prefix", k)
			}
		}
		if len(name) > 63 || !labelName.MatchString(name) {
			c.add(finding.InvalidLabel, at, "", "label name %q is not valid", k)
		}
		if v := labels[k]; len(v) > 63 || !labelValue.MatchString(v) {
			c.addValue(finding.InvalidLabel, at, "", "label value %q is not valid", v)
		}
	}
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// exportTo checks a visibility list.
func (c *checker) exportTo(path string, namespaces []string) {
	for i, ns := range namespaces {
		switch {
		case ns == "." || ns == "*" || ns == "~":
		case !dnsLabel.MatchString(ns):
			c.addValue(finding.InvalidReference, resource.Item(path, i), `use ".", "*", "~" or the name of a namespace`,
				"%q is not a namespace", ns)
		}
		if len(namespaces) > 1 && (ns == "*" || ns == "~") {
			c.addValue(finding.InvalidReference, resource.Item(path, i), "", "%q cannot stand beside other entries", ns)
		}
	}
}

func (c *checker) percent(path string, p float64) {
	if p < 0 || p > 100 {
		c.addValue(finding.OutOfRange, path, "", "%s is %v; it must be from 0 to 100", path, p)
	}
}
