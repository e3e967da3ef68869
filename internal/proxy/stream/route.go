package stream

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"

	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
	"lateen.dev/lateen/internal/proxy/snapshot"
	"lateen.dev/lateen/internal/proxy/upstream"
)

// rewrite makes the request head fit its destination: header edits from the
// most specific to the least (cluster, route, virtual host), then host and
// path. The order is Envoy's.
func (x *Exchange) rewrite(r *snapshot.Route) {
	h, vh := x.head, x.rec.VirtualHost
	x.apply(h, &x.weighted.Request)
	x.apply(h, &r.Request)
	x.apply(h, &vh.Request)
	host := r.HostRewrite
	if x.weighted.HostRewrite != "" {
		host = x.weighted.HostRewrite
	}
	if host != "" {
		x.setHost(r, host)
	}
	path := h.Path()
	if next := rewritePath(r, path); next != nil && !bytes.Equal(next, path) {
		x.rec.OriginalPath = string(path)
		h.Set(message.XEnvoyOriginalPath, path)
		h.SetPath(next)
	}
}

func (x *Exchange) setHost(r *snapshot.Route, host string) {
	h := x.head
	if r.AppendXFH {
		before := h.Authority()
		if xfh := h.Get(message.XForwardedHost); len(xfh) > 0 {
			before = append(append(bytes.Clone(xfh), ','), before...)
		}
		h.Set(message.XForwardedHost, before)
	}
	h.SetAuthority([]byte(host))
}

// rewritePath returns the path with query after the route's rewrite, nil when
// it has none.
func rewritePath(r *snapshot.Route, path []byte) []byte {
	if r.PrefixRewrite == "" && r.RegexRewrite == nil {
		return nil
	}
	only, query := path, []byte(nil)
	if i := bytes.IndexByte(path, '?'); i >= 0 {
		only, query = path[:i], path[i:]
	}
	return append(rewritePathOnly(&r.Match.Path, r.PrefixRewrite, r.RegexRewrite, only), query...)
}

// rewritePathOnly replaces the part of the path that the route matched.
func rewritePathOnly(m *snapshot.PathMatch, prefix string, regex *snapshot.RegexRewrite, only []byte) []byte {
	if regex != nil {
		return regex.Regex.ReplaceAll(only, []byte(goTemplate(regex.Substitution)))
	}
	rest := only
	switch m.Kind {
	case snapshot.PathPrefix, snapshot.PathSeparatedPrefix, snapshot.PathExact:
		rest = only[min(len(m.Text), len(only)):]
	default: // a regex or template match replaces everything
		rest = nil
	}
	out := append([]byte(prefix), rest...)
	if len(out) == 0 || out[0] != '/' {
		out = append([]byte{'/'}, out...)
	}
	return out
}

// goTemplate turns RE2's \1 into Go's ${1}.
func goTemplate(s string) string {
	if !strings.ContainsAny(s, `\$`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '$':
			b.WriteString("$$")
		case s[i] == '\\' && i+1 < len(s):
			i++
			if '0' <= s[i] && s[i] <= '9' {
				b.WriteString("${" + s[i:i+1] + "}")
			} else {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// redirect answers with the place that the route names.
func (x *Exchange) redirect(r *snapshot.Route) {
	d, h := r.Redirect, x.head
	scheme := string(h.Scheme())
	original := scheme
	if d.Scheme != "" {
		scheme = d.Scheme
	}
	host := string(h.Authority())
	port := ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host, port = host[:i], host[i:]
	}
	if d.Host != "" {
		host, port = d.Host, ""
	}
	if scheme != original && (port == ":80" || port == ":443") {
		port = "" // the default port of the other scheme
	}
	if d.Port != 0 {
		port = ":" + strconv.Itoa(int(d.Port))
		if scheme == "http" && d.Port == 80 || scheme == "https" && d.Port == 443 {
			port = ""
		}
	}
	code := d.Code
	if code == 0 {
		code = http.StatusMovedPermanently
	}
	x.beginReply(code)
	x.respHead.AddString(message.Location, scheme+"://"+host+port+redirectPath(r, h))
	x.applyResponseOps(&x.respHead)
	x.sendReply(0, "direct_response", nil)
}

func redirectPath(r *snapshot.Route, h *message.Head) string {
	d := r.Redirect
	path, query := string(h.PathOnly()), ""
	if q := h.Query(); q != nil && !d.StripQuery {
		query = "?" + string(q)
	}
	switch {
	case d.Path != "":
		if strings.Contains(d.Path, "?") {
			return d.Path // its own query replaces the client's
		}
		return d.Path + query
	case d.PrefixRewrite != "" || d.RegexRewrite != nil:
		return string(rewritePathOnly(&r.Match.Path, d.PrefixRewrite, d.RegexRewrite, []byte(path))) + query
	}
	return path + query
}

// direct answers with the route's own response.
func (x *Exchange) direct(r *snapshot.Route) {
	x.beginReply(r.Direct.Status)
	if len(r.Direct.Body) > 0 {
		x.respHead.AddString(message.ContentType, "text/plain")
	}
	x.applyResponseOps(&x.respHead)
	x.sendReply(0, "direct_response", r.Direct.Body)
}

// apply edits a head: remove, set, add.
func (x *Exchange) apply(h *message.Head, ops *snapshot.HeaderOps) {
	for _, name := range ops.Remove {
		h.DelName(name)
	}
	for i := range ops.Set {
		if v, ok := x.value(ops.Set[i].Value); ok {
			x.setNamed(h, ops.Set[i].Name, v)
		}
	}
	for i := range ops.Add {
		if v, ok := x.value(ops.Add[i].Value); ok {
			h.AddNameString(ops.Add[i].Name, v)
		}
	}
}

// setNamed sets a field by name; "host" and pseudo names are the request's own.
func (x *Exchange) setNamed(h *message.Head, name, value string) {
	switch name {
	case "host", ":authority":
		h.SetAuthority([]byte(value))
	case ":path":
		if strings.HasPrefix(value, "/") {
			h.SetPath([]byte(value))
		}
	case ":method", ":scheme", ":status":
		// cannot be changed by header edits
	default:
		h.SetName(name, value)
	}
}

// value expands %OPERATORS%. Formats are compiled once per loop. A value that
// came from outside is kept from breaking the header line.
func (x *Exchange) value(text string) (string, bool) {
	if strings.IndexByte(text, '%') < 0 {
		return text, true
	}
	e := x.env
	f, known := e.formats[text]
	if !known {
		f, _ = record.ParseFormat(text) // the snapshot refuses formats that do not parse
		if e.formats == nil || len(e.formats) > 4096 {
			e.formats = map[string]*record.Format{}
		}
		e.formats[text] = f
	}
	if f == nil {
		return "", false
	}
	env := e.Format
	if env == nil {
		env = &record.Env{}
	}
	x.rec.Total = time.Duration(e.Clock.Now() - x.startAt)
	out := f.Append(nil, &x.rec, env)
	for i, c := range out {
		if c == '\r' || c == '\n' || c == 0 {
			out[i] = ' '
		}
	}
	if s := string(out); s != "-" && s != "" {
		return s, true
	}
	return "", false // an operator without a value adds no header, as in Envoy
}

// applyResponseOps edits a response head, cluster to virtual host.
func (x *Exchange) applyResponseOps(h *message.Head) {
	if x.weighted != nil {
		x.apply(h, &x.weighted.Response)
	}
	if r := x.rec.Route; r != nil {
		x.apply(h, &r.Response)
	}
	if vh := x.rec.VirtualHost; vh != nil {
		x.apply(h, &vh.Response)
	}
}

// computeHash combines the route's hash policies (Envoy: rotate and xor, stop
// at a terminal one that gave something).
func (x *Exchange) computeHash(r *snapshot.Route) {
	for i := range r.Hash {
		p := &r.Hash[i]
		part, ok := x.hashPart(p)
		if ok {
			x.hash = (x.hash<<1 | x.hash>>63) ^ part
			x.hashed = true
		}
		if p.Terminal && x.hashed {
			return
		}
	}
}

func (x *Exchange) hashPart(p *snapshot.HashPolicy) (uint64, bool) {
	h := x.head
	switch {
	case p.Header != "":
		v := h.GetName(p.Header)
		if p.Header == ":authority" || p.Header == "host" {
			v = h.Authority()
		} else if p.Header == ":path" {
			v = h.Path()
		}
		return upstream.Hash(0, v), v != nil
	case p.SourceIP:
		return upstream.HashAddr(x.remote), x.remote.IsValid()
	case p.Query != "":
		v, ok := queryParameter(h.Query(), p.Query)
		return upstream.Hash(0, v), ok
	case p.Cookie != "":
		return x.cookieHash(p)
	}
	return 0, false
}

// cookieHash uses the client's cookie; with a TTL a client without one gets it.
func (x *Exchange) cookieHash(p *snapshot.HashPolicy) (uint64, bool) {
	if v, ok := cookieValue(x.head.Get(message.Cookie), p.Cookie); ok {
		return upstream.Hash(0, v), true
	}
	if p.CookieTTL == nil {
		return 0, false
	}
	var raw [8]byte
	n := x.env.Rand.Uint64()
	for i := range raw {
		raw[i] = byte(n >> (8 * i))
	}
	value := hex.EncodeToString(raw[:])
	x.cookie = append(x.cookie[:0], p.Cookie+"=\""+value+"\""...)
	if secs := int(p.CookieTTL.Seconds()); secs > 0 {
		x.cookie = append(x.cookie, "; Max-Age="+strconv.Itoa(secs)...)
	}
	if p.CookiePath != "" {
		x.cookie = append(x.cookie, "; Path="+p.CookiePath...)
	}
	x.cookie = append(x.cookie, "; HttpOnly"...)
	return upstream.Hash(0, []byte(value)), true
}

func cookieValue(header []byte, name string) ([]byte, bool) {
	for len(header) > 0 {
		item := header
		if i := bytes.IndexByte(header, ';'); i >= 0 {
			item, header = header[:i], header[i+1:]
		} else {
			header = nil
		}
		k, v, ok := bytes.Cut(bytes.TrimSpace(item), []byte{'='})
		if ok && string(k) == name {
			return bytes.Trim(v, `"`), true
		}
	}
	return nil, false
}

func queryParameter(query []byte, name string) ([]byte, bool) {
	for len(query) > 0 {
		item := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			item, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		k, v, _ := bytes.Cut(item, []byte{'='})
		if string(k) == name {
			return v, true
		}
	}
	return nil, false
}
