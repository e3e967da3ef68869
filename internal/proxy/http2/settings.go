package http2

import "encoding/binary"

// onSettings applies the peer's settings in their order and acknowledges them.
func (c *conn) onSettings(flags byte, id uint32, p []byte) {
	switch {
	case id != 0:
		c.fail(errNotStreamZero)
		return
	case flags&flagAck != 0:
		if len(p) != 0 {
			c.fail(errSettingsAck)
			return
		}
		c.acked = true
		c.clocks.settings = 0
		c.controlFrame()
		return
	case len(p)%6 != 0:
		c.fail(errFrameSize)
		return
	}
	if c.guard.settings++; len(p) > 6*maxSettings || c.guard.settings > settingsBudget && !c.guard.renew(c) {
		c.fail(errControlFlood)
		return
	}
	if !c.controlFrame() {
		return
	}
	for ; len(p) > 0; p = p[6:] {
		if err := c.setting(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])); err != nil {
			c.fail(err)
			return
		}
	}
	first := !c.settled
	c.settled = true
	c.pool.scratch = appendFrame(c.pool.scratch[:0], 0, frameSettings, flagAck, 0)
	c.writeControl(c.pool.scratch)
	c.flush()
	if c.cli != nil {
		c.cli.settingsCame(first)
	}
}

func (c *conn) setting(id uint16, v uint32) *Error {
	switch id {
	case settingHeaderTableSize:
		c.enc.SetLimit(v)
	case settingEnablePush:
		if v > 1 || v == 1 && c.cli != nil {
			return errSetting
		}
	case settingMaxConcurrentStreams:
		c.peerMax = v
	case settingInitialWindowSize:
		return c.changeWindow(v)
	case settingMaxFrameSize:
		// Ours stay at the smallest size that every peer must take.
		if v < maxFrame || v > 1<<24-1 {
			return errSetting
		}
	case settingEnableConnect:
		if v > 1 {
			return errSetting
		}
		c.connectProtocol = v == 1
	}
	return nil
}

// changeWindow moves the window of every open stream (§6.9.2); it may become
// negative.
func (c *conn) changeWindow(v uint32) *Error {
	if v > maxWindow {
		return errWindowSize
	}
	delta := int64(v) - c.peerWindow
	c.peerWindow = int64(v)
	for _, s := range c.streams.slots {
		if s == nil {
			continue
		}
		if s.sendWindow += delta; s.sendWindow > maxWindow {
			return errWindowSize
		}
		if s.pending > 0 && !s.queued && s.sendWindow > 0 {
			c.ring.push(s)
		}
	}
	return nil
}
