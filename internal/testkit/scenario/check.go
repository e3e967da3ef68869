package scenario

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Result is what happened to one request of a call.
type Result struct {
	// Mark is how the live runner finds the request in logs.
	Mark   string
	Status int
	// From is the Deployment that answered, "" when a proxy did.
	From   string
	Body   string
	Header map[string][]string // response headers, lower-case names
	// Seen is the request as the application received it.
	SeenMethod, SeenPath, SeenHost, SeenProto string
	SeenHeader                                map[string][]string
	// GRPC is the gRPC status, "" if there was none.
	GRPC     string
	Attempts int
	// Flags and Details are the caller's proxy's, joined with "," and "|" to the
	// callee's when that proxy answered.
	Flags   []string
	Details []string
	Route   string
	// Origins are the deciding origins of all hops, with file:line resolved.
	Origins []string
	Took    time.Duration
	// Lines are the access-log lines of all proxies on the way, Spans the
	// attributes of all their spans.
	Lines []string
	Spans []map[string]string
	// Mirrored counts the copies that each Deployment received.
	Mirrored map[string]int
	// Err is a transport error seen by the client ("reset", "refused", …).
	Err string
}

// Check compares the results of all requests of a call with its expectations.
func (c Call) Check(results []Result) error {
	if len(results) == 0 {
		return fmt.Errorf("line %d: no result", c.Line)
	}
	for _, w := range c.Wants {
		if err := w.check(results); err != nil {
			return fmt.Errorf("line %d: %s -> %s %s: want %q: %w", w.Line, c.From, c.Method, c.URL, w.Text, err)
		}
	}
	return nil
}

// CheckOne compares the i-th result of a call with the expectations that hold
// for every request.
func (c Call) CheckOne(i int, r Result) error {
	for _, w := range c.Wants {
		if w.ofAll() {
			continue
		}
		if err := w.check([]Result{r}); err != nil {
			return fmt.Errorf("line %d: request %d: want %q: %w", w.Line, i+1, w.Text, err)
		}
	}
	return nil
}

// ofAll reports whether the expectation is about all results together.
func (w Want) ofAll() bool {
	verb, _, _ := strings.Cut(w.Text, " ")
	return together[verb] != nil
}

// together are the expectations about all results.
var together = map[string]func(string, []Result) error{
	"split": checkSplit, "statuses": checkStatuses, "mirrors": checkMirrors, "stays": checkStays,
}

func (w Want) check(results []Result) error {
	verb, rest, _ := strings.Cut(w.Text, " ")
	if check := together[verb]; check != nil {
		return check(rest, results)
	}
	check, ok := checks[verb]
	if !ok {
		if _, err := strconv.Atoi(verb); err != nil {
			return fmt.Errorf("unknown expectation")
		}
		check, rest = checkStatus, w.Text
	}
	for i, r := range results {
		if err := check(rest, r); err != nil {
			return fmt.Errorf("request %d: %w", i+1, err)
		}
	}
	return nil
}

// checks are the expectations that hold for every request of a call.
var checks = map[string]func(string, Result) error{
	"body":     func(want string, r Result) error { return contains("body", r.Body, unquote(want)) },
	"header":   func(want string, r Result) error { return checkHeader(want, r.Header) },
	"sees":     checkSees,
	"attempts": func(want string, r Result) error { return equal("attempts", strconv.Itoa(r.Attempts), want) },
	"flag": func(want string, r Result) error {
		return contains("flags", " "+strings.Join(r.Flags, " ")+" ", " "+want+" ")
	},
	"details": func(want string, r Result) error {
		return contains("details", strings.Join(r.Details, " | "), unquote(want))
	},
	"grpc":     func(want string, r Result) error { return equal("grpc-status", r.GRPC, want) },
	"route":    func(want string, r Result) error { return equal("route", r.Route, want) },
	"origin":   func(want string, r Result) error { return contains("origins", strings.Join(r.Origins, " | "), want) },
	"mirrored": checkMirrored,
	"log": func(want string, r Result) error {
		return contains("access logs", strings.Join(r.Lines, "\n"), unquote(want))
	},
	"span":  checkSpan,
	"takes": checkTakes,
	"error": func(want string, r Result) error { return contains("error", r.Err, want) },
}

// checkStatus reads "200", "200 from reviews-v2" or "200 from reviews-v1|reviews-v2".
func checkStatus(want string, r Result) error {
	status, from, _ := strings.Cut(want, " from ")
	if strconv.Itoa(r.Status) != strings.TrimSpace(status) {
		return fmt.Errorf("got status %d from %q (error %q, details %v)", r.Status, r.From, r.Err, r.Details)
	}
	if from == "" {
		return nil
	}
	for name := range strings.SplitSeq(from, "|") {
		if r.From == strings.TrimSpace(name) {
			return nil
		}
	}
	return fmt.Errorf("got an answer from %q", r.From)
}

// checkSplit reads "reviews-v1=90±6 reviews-v2=10±6": shares in percent.
func checkSplit(want string, results []Result) error {
	counts := map[string]int{}
	for _, r := range results {
		counts[r.From]++
	}
	return checkShares(want, counts, len(results))
}

// checkMirrors reads "shadow-v1=50±9": how many of the requests were copied.
func checkMirrors(want string, results []Result) error {
	counts := map[string]int{}
	for _, r := range results {
		for name, n := range r.Mirrored {
			counts[name] += n
		}
	}
	return checkShares(want, counts, len(results))
}

// checkStays wants one Deployment to have answered everything.
func checkStays(_ string, results []Result) error {
	for i, r := range results {
		if r.From == "" || r.From != results[0].From {
			return fmt.Errorf("request 1 was answered by %q, request %d by %q", results[0].From, i+1, r.From)
		}
	}
	return nil
}

// checkStatuses reads "200=2 503=3": how often each status came.
func checkStatuses(want string, results []Result) error {
	counts := map[string]int{}
	for _, r := range results {
		counts[strconv.Itoa(r.Status)]++
	}
	for part := range strings.FieldsSeq(want) {
		status, n, _ := strings.Cut(part, "=")
		if strconv.Itoa(counts[status]) != n {
			return fmt.Errorf("statuses %v", counts)
		}
	}
	return nil
}

func checkShares(want string, counts map[string]int, of int) error {
	for part := range strings.FieldsSeq(want) {
		name, share, _ := strings.Cut(part, "=")
		center, tolerance, _ := strings.Cut(share, "±")
		c, err := strconv.ParseFloat(center, 64)
		if err != nil {
			return fmt.Errorf("share %q: %w", part, err)
		}
		tol, _ := strconv.ParseFloat(tolerance, 64)
		got := 100 * float64(counts[name]) / float64(of)
		if got < c-tol || got > c+tol {
			return fmt.Errorf("%s got %.1f %% of %d (all: %v)", name, got, of, counts)
		}
	}
	return nil
}

// checkSees reads "path /x", "host h", "method GET", "header name: value" or
// "no header name": the request as the application received it.
func checkSees(want string, r Result) error {
	what, value, _ := strings.Cut(want, " ")
	switch what {
	case "path":
		return equal("path", r.SeenPath, value)
	case "host":
		return equal("host", r.SeenHost, value)
	case "method":
		return equal("method", r.SeenMethod, value)
	case "proto":
		return equal("proto", r.SeenProto, value)
	case "header":
		return checkHeader(value, r.SeenHeader)
	case "no":
		return checkHeader("no "+strings.TrimPrefix(value, "header "), r.SeenHeader)
	}
	return fmt.Errorf("unknown word %q after sees", what)
}

// checkHeader reads "name: value", "name: ~part", "name" (present) or "no name".
func checkHeader(want string, got map[string][]string) error {
	if name, ok := strings.CutPrefix(want, "no "); ok {
		if v, present := got[strings.ToLower(name)]; present {
			return fmt.Errorf("header %s is %q", name, v)
		}
		return nil
	}
	name, value, hasValue := strings.Cut(want, ":")
	values, present := got[strings.ToLower(strings.TrimSpace(name))]
	value = strings.TrimSpace(value)
	joined := strings.Join(values, ",")
	part, isPart := strings.CutPrefix(value, "~")
	switch {
	case !present:
		return fmt.Errorf("no header %s; got %v", name, got)
	case !hasValue, isPart && strings.Contains(joined, part), joined == value:
		return nil
	}
	return fmt.Errorf("header %s is %q", name, joined)
}

// checkMirrored reads "shadow-v1=1": copies of each request.
func checkMirrored(want string, r Result) error {
	name, count, _ := strings.Cut(want, "=")
	return equal("mirrored", strconv.Itoa(r.Mirrored[name]), count)
}

// checkSpan reads "ATTRIBUTE: VALUE": some span has it.
func checkSpan(want string, r Result) error {
	key, value, _ := strings.Cut(want, ": ")
	var seen []string
	for _, s := range r.Spans {
		if v, ok := s[key]; ok && v == value {
			return nil
		}
		seen = append(seen, s[key])
	}
	return fmt.Errorf("spans have %q", seen)
}

// checkTakes reads "200ms..400ms".
func checkTakes(want string, r Result) error {
	low, high, ok := strings.Cut(want, "..")
	if !ok {
		return fmt.Errorf("want LOW..HIGH")
	}
	lo, err1 := time.ParseDuration(low)
	hi, err2 := time.ParseDuration(high)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("bad durations")
	}
	if r.Took < lo || r.Took > hi {
		return fmt.Errorf("took %v", r.Took)
	}
	return nil
}

func equal(what, got, want string) error {
	if got != want {
		return fmt.Errorf("%s is %q", what, got)
	}
	return nil
}

func contains(what, got, want string) error {
	if !strings.Contains(got, want) {
		return fmt.Errorf("%s: %q", what, got)
	}
	return nil
}

func unquote(s string) string {
	if u, err := strconv.Unquote(s); err == nil {
		return u
	}
	return s
}
