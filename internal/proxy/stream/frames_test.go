package stream

import (
	"slices"
	"strings"
	"testing"
)

func message5(n int, compressed byte) string {
	return string([]byte{compressed, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + strings.Repeat("x", n)
}

func TestFrames_anyPieces(t *testing.T) {
	body := message5(0, 0) + message5(3, 1) + message5(70000, 0) + message5(0, 0) + message5(1, 0)
	for _, step := range []int{1, 2, 5, 7, 4096, len(body)} {
		var f frames
		n := uint64(0)
		for part := range slices.Chunk([]byte(body), step) {
			n += f.count(part)
		}
		if n != 5 {
			t.Errorf("in pieces of %d: %d messages, want 5", step, n)
		}
	}
	var f frames
	if n := f.count([]byte(message5(9, 0)[:4])); n != 0 {
		t.Error("half a prefix is a message")
	}
}

func TestExchange_countsGRPCMessages(t *testing.T) {
	b := newBed(t, route())
	b.up.script = always(func(u *fakeUp) {
		u.onEnd = func() {
			u.respond(200, message5(2, 0)+message5(2, 0)+message5(2, 0), "content-type", "application/grpc")
		}
		u.open()
	})
	d := b.start("POST /s/m", "content-type", "application/grpc")
	d.in.OnHead(d.head, false)
	d.in.OnData([]byte(message5(10, 0)[:7]), false)
	d.in.OnData([]byte(message5(10, 0)[7:]+message5(0, 0)), true)
	if r := b.last(); r.RequestMessages != 2 || r.ResponseMessages != 3 {
		t.Errorf("%d and %d messages, want 2 and 3", r.RequestMessages, r.ResponseMessages)
	}
}
