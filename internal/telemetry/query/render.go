package query

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"lateen.dev/lateen/internal/telemetry/store"
)

// RenderList writes traces as a table, newest first.
func RenderList(w io.Writer, l *TraceList) error {
	if len(l.Traces) == 0 {
		_, err := fmt.Fprintln(w, "no traces match")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "TRACE\tSTARTED\tDURATION\tSPANS\tERRORS\tSERVICE\tNAME")
	for i := range l.Traces {
		x := &l.Traces[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", x.TraceID, x.Start.Local().Format("15:04:05.000"), short(x.Duration), x.Spans, x.Errors, clean(x.Service), clean(x.Name))
	}
	return t.Flush()
}

// barWidth is the number of columns of the waterfall.
const barWidth = 30

// node is a span in the tree of its trace.
type node struct {
	span     *store.Span
	children []*node
	orphan   bool // its parent is named but not stored
}

// tree arranges spans by parent. A parent that never arrived, or a cycle, makes
// a root, so that no span is hidden.
func tree(spans []store.Span) []*node {
	byID := make(map[string]*node, len(spans))
	nodes := make([]*node, len(spans))
	for i := range spans {
		nodes[i] = &node{span: &spans[i]}
		byID[string(spans[i].SpanID)] = nodes[i]
	}
	parentOf := func(n *node) *node {
		if len(n.span.ParentID) == 0 {
			return nil
		}
		return byID[string(n.span.ParentID)]
	}
	var roots []*node
	for _, n := range nodes {
		p := parentOf(n)
		n.orphan = p == nil && len(n.span.ParentID) > 0
		if p == nil || cyclic(n, parentOf, len(nodes)) {
			roots = append(roots, n)
			continue
		}
		p.children = append(p.children, n)
	}
	return roots
}

// cyclic says whether n is its own ancestor.
func cyclic(n *node, parentOf func(*node) *node, limit int) bool {
	for p := parentOf(n); p != nil && limit >= 0; p, limit = parentOf(p), limit-1 {
		if p == n {
			return true
		}
	}
	return false
}

// RenderTrace writes one trace as a waterfall:
//
//	frontend              GET /order    ████████████  12.1ms  200
//	└ frontend.default    GET /users/*  ··█████·····   5.0ms  503 UF
//	      upstream_reset_before_response_started{…}; VirtualService/a.b#spec.http[0] (vs.yaml:12)
//
// Below a span stands what a person asks next: the error and the line of
// configuration that decided. At most limit spans are written, and how many are
// left out is said; 0 means all.
func RenderTrace(w io.Writer, t *Trace, limit int) error {
	var b bytes.Buffer
	start, end := bounds(t.Spans)
	errs := 0
	for i := range t.Spans {
		if t.Spans[i].Status == store.StatusError {
			errs++
		}
	}
	fmt.Fprintf(&b, "trace %s  %s  %s  %d spans, %d failed\n", t.TraceID, start.Local().Format("2006-01-02 15:04:05.000"), short(end.Sub(start)), len(t.Spans), errs)
	type row struct{ left, name, bar, rest, note string }
	var rows []row
	var visit func(n *node, indent string, last bool, depth int)
	visit = func(n *node, indent string, last bool, depth int) {
		branch, next := "", ""
		if depth > 0 {
			branch, next = "├ ", "│ "
			if last {
				branch, next = "└ ", "  "
			}
		}
		s := n.span
		kind := ""
		if s.Kind == store.KindClient {
			kind = "→ "
		}
		rows = append(rows, row{
			left: indent + branch + clean(s.Service), name: kind + clean(s.Name), bar: bar(s, start, end),
			rest: fmt.Sprintf("%8s  %s", short(s.Duration), outcome(s)), note: note(n),
		})
		slices.SortStableFunc(n.children, func(a, b *node) int { return cmp.Compare(a.span.Start.UnixNano(), b.span.Start.UnixNano()) })
		for i, c := range n.children {
			visit(c, indent+next, i == len(n.children)-1, depth+1)
		}
	}
	roots := tree(t.Spans)
	for i, r := range roots {
		visit(r, "", i == len(roots)-1, 0)
	}
	more := 0
	if limit > 0 && len(rows) > limit {
		rows, more = rows[:limit], len(rows)-limit
	}
	left, name := 0, 0
	for i := range rows {
		left, name = max(left, utf8.RuneCountInString(rows[i].left)), max(name, utf8.RuneCountInString(rows[i].name))
	}
	left, name = min(left, 48), min(name, 40)
	for i := range rows {
		r := &rows[i]
		fmt.Fprintf(&b, "%s  %s  %s  %s\n", pad(r.left, left), pad(r.name, name), r.bar, strings.TrimRight(r.rest, " "))
		if r.note != "" {
			fmt.Fprintf(&b, "      %s\n", r.note)
		}
	}
	if more > 0 {
		fmt.Fprintf(&b, "and %d spans more; --limit 0 prints all\n", more)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func bounds(spans []store.Span) (start, end time.Time) {
	for i := range spans {
		s := &spans[i]
		if i == 0 || s.Start.Before(start) {
			start = s.Start
		}
		if e := s.Start.Add(s.Duration); i == 0 || e.After(end) {
			end = e
		}
	}
	return start, end
}

// bar places the span in the time of its trace; the shortest is one column.
func bar(s *store.Span, start, end time.Time) string {
	total := float64(max(end.Sub(start), 1))
	from := int(float64(s.Start.Sub(start)) / total * barWidth)
	to := int(float64(s.Start.Add(s.Duration).Sub(start))/total*barWidth + 0.5)
	from = min(max(from, 0), barWidth-1)
	to = min(max(to, from+1), barWidth)
	return strings.Repeat("·", from) + strings.Repeat("█", to-from) + strings.Repeat("·", barWidth-to)
}

// outcome is the status with the response flags, or "error".
func outcome(s *store.Span) string {
	code := first(s.Attributes, "http.response.status_code", "http.status_code", "rpc.response.status_code")
	flags := first(s.Attributes, "response_flags")
	if flags == "-" {
		flags = ""
	}
	if code == "" && s.Status == store.StatusError {
		code = "error"
	}
	if n := first(s.Attributes, "http.request.resend_count"); n != "" {
		flags = strings.TrimSpace(flags + " retry " + n)
	}
	return strings.TrimSpace(code + " " + flags)
}

func note(n *node) string {
	s := n.span
	var parts []string
	if s.Status == store.StatusError || first(s.Attributes, "lateen.policy") != "" {
		if m := cmp.Or(s.StatusMessage, first(s.Attributes, "response_code_details", "error.type")); m != "" {
			parts = append(parts, m)
		}
	}
	if o := first(s.Attributes, "lateen.origin"); o != "" {
		if at := first(s.Attributes, "lateen.origin.source"); at != "" {
			o += " (" + at + ")"
		}
		parts = append(parts, o)
	}
	if n.orphan {
		parts = append(parts, "its parent "+s.ParentID.String()+" was not reported")
	}
	return clean(strings.Join(parts, "; "))
}

// first is the first attribute present, as text.
func first(attrs map[string]any, keys ...string) string {
	for _, k := range keys {
		if v, ok := attrs[k]; ok {
			return fmt.Sprint(v)
		}
	}
	return ""
}

// short prints a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/1e6)
	}
	return fmt.Sprintf("%dµs", d.Microseconds())
}

// clean keeps what applications send from driving the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// pad makes s exactly n columns wide.
func pad(s string, n int) string {
	c := utf8.RuneCountInString(s)
	if c > n {
		return string([]rune(s)[:n-1]) + "…"
	}
	return s + strings.Repeat(" ", n-c)
}
