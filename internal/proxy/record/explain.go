package record

import "strings"

// Explanation is what Done would write of one exchange, for people and tests.
type Explanation struct {
	// Lines are the lines of file access logs, without their ends.
	Lines []string
	// Spans hold the attributes of each span in the order they are written, the
	// span's name under "name". They are made even when the exchange is not
	// sampled, but not when tracing is off.
	Spans []map[string]string
}

// Explain describes an exchange without exporting or counting anything. It must
// be called on the recorder's loop, and not on one that also exports.
func (r *Recorder) Explain(rec *Record) (x Explanation) {
	if rec.Manager != nil {
		r.accessLogs(rec.Manager.AccessLogs, rec)
		for _, b := range r.lines {
			for line := range strings.Lines(string(b.data)) {
				x.Lines = append(x.Lines, strings.TrimSuffix(line, "\n"))
			}
			b.data, b.lines = b.data[:0], 0
		}
	}
	if rec.Trace.Tracing == nil {
		return x
	}
	r.spans(rec)
	st := r.tracer(rec.Trace.Tracing).stream
	walk(st.data, func(_ int, _ uint64, span []byte) { x.Spans = append(x.Spans, attributesOf(span)) })
	st.data, st.count = st.data[:0], 0
	return x
}

// attributesOf reads the text attributes and the name of an encoded span.
func attributesOf(span []byte) map[string]string {
	const nameField, keyField, valueField, textField = 5, 1, 2, 1
	out := map[string]string{}
	walk(span, func(field int, _ uint64, msg []byte) {
		switch field {
		case nameField:
			out["name"] = string(msg)
		case spanAttr:
			key, value := "", ""
			walk(msg, func(field int, _ uint64, part []byte) {
				switch field {
				case keyField:
					key = string(part)
				case valueField:
					walk(part, func(field int, _ uint64, text []byte) {
						if field == textField {
							value = string(text)
						}
					})
				}
			})
			out[key] = value
		}
	})
	return out
}
