package finding

import "fmt"

// Code is the entry of one code in the registry: what `analyze list` and the
// reference page print. A number is never reused, and never changes its
// meaning.
type Code struct {
	ID       string
	Severity Severity
	// Istio is the code istioctl has for the same condition, "" for none.
	Istio string
	Title string
	// Explanation says why it matters and what to do, in one or two sentences.
	Explanation string
}

// New returns a finding of the given code with the severity and Istio code of
// the registry. It panics on a code that the registry does not know, which the
// tests of every rule would meet.
func New(code string, object Object, path string, pos Position, message string) Finding {
	c, ok := Lookup(code)
	if !ok {
		panic("finding: code " + code + " is not in the registry")
	}
	return Finding{
		Code: c.ID, Istio: c.Istio, Severity: c.Severity,
		Object: object, Path: path, Pos: pos, Message: message,
	}
}

// Newf is New with a formatted message.
func Newf(code string, object Object, path string, pos Position, format string, args ...any) Finding {
	return New(code, object, path, pos, fmt.Sprintf(format, args...))
}

// WithHint returns f with the given hint.
func (f Finding) WithHint(format string, args ...any) Finding {
	f.Hint = fmt.Sprintf(format, args...)
	return f
}

// Lookup returns the registry entry of a code.
func Lookup(id string) (Code, bool) {
	for _, c := range Codes() {
		if c.ID == id {
			return c, true
		}
	}
	return Code{}, false
}
