package stream

import (
	"net/http"
	"strconv"
	"time"

	"lateen.dev/lateen/internal/proxy/filter/cors"
	"lateen.dev/lateen/internal/proxy/message"
	"lateen.dev/lateen/internal/proxy/record"
)

// reply answers locally with a plain text, possibly empty, and ends the exchange.
func (x *Exchange) reply(status int, flags record.Flags, details, body string) {
	if x.grpc {
		x.replyGRPC(status, flags, details, body)
		return
	}
	x.beginReply(status)
	if body != "" {
		x.respHead.AddString(message.ContentType, "text/plain")
	}
	x.sendReply(flags, details, []byte(body))
}

// beginReply prepares respHead for a local response.
func (x *Exchange) beginReply(status int) {
	x.respHead.Reset()
	x.respHead.SetStatus(status)
}

// sendReply sends respHead and a body and ends the exchange.
func (x *Exchange) sendReply(flags record.Flags, details string, body []byte) {
	h := &x.respHead
	x.rec.Flags |= flags
	x.rec.Details = details
	if h.Status() >= 200 && h.Status() != http.StatusNoContent && h.Status() != http.StatusNotModified && !h.Has(message.GRPCStatus) {
		var n [20]byte
		h.Set(message.ContentLength, strconv.AppendInt(n[:0], int64(len(body)), 10))
	}
	if flags&record.FlagUO != 0 {
		if c := x.rec.Cluster; c != nil && c.Origin != "" {
			x.rec.Decider = c.Origin // whoever set the limit
		}
		h.SetString(message.XEnvoyOverloaded, "true")
	}
	x.finishHead(h)
	x.responded = true
	x.rec.Response, x.rec.Status = h, h.Status()
	x.stopAttempt()
	x.down.SendHead(h, len(body) == 0)
	if len(body) > 0 {
		x.rec.BytesSent += uint64(len(body))
		x.down.SendData(body, true)
	}
	x.finish()
}

// stopAttempt lets go of the upstream side.
func (x *Exchange) stopAttempt() {
	if a := x.cur; a != nil {
		x.cur = nil
		a.abandon()
	}
}

// finishHead puts on every response what the manager promises.
func (x *Exchange) finishHead(h *message.Head) {
	m := x.site.Manager
	if !m.ServerPassThrough || !h.Has(message.Server) {
		name := m.ServerName
		if name == "" {
			name = "envoy" // the field's default: clients and dashboards know it
		}
		h.SetString(message.Server, name)
	}
	if !h.Has(message.Date) {
		h.Add(message.Date, x.env.date.now(x.env.Clock.Wall()))
	}
	if x.corsFor != nil {
		cors.Response(x.corsFor, x.origin, h)
	}
	if len(x.cookie) > 0 {
		h.AddName([]byte("set-cookie"), x.cookie)
	}
}

// dateCache formats the time once per second.
type dateCache struct {
	second int64
	text   []byte
}

func (d *dateCache) now(t time.Time) []byte {
	if s := t.Unix(); s != d.second || d.text == nil {
		d.second = s
		d.text = t.UTC().AppendFormat(d.text[:0], http.TimeFormat)
	}
	return d.text
}

// resetDown ends an exchange whose response cannot be completed; the client
// must see that it is cut.
func (x *Exchange) resetDown() {
	x.untrusted = true
	x.stopAttempt()
	x.down.Reset(message.ResetTermination)
	x.finish()
}
