package message

import "testing"

// TestHead_findsFieldsHoweverTheyCame: a name that is looked up must be found
// whichever way the codec or a filter put it there.
func TestHead_findsFieldsHoweverTheyCame(t *testing.T) {
	block := []byte("authorizationsecret")
	for name, add := range map[string]func(h *Head){
		"Add":           func(h *Head) { h.Add(Authorization, []byte("secret")) },
		"AddString":     func(h *Head) { h.AddString(Authorization, "secret") },
		"AddName":       func(h *Head) { h.AddName([]byte("authorization"), []byte("secret")) },
		"AddNameString": func(h *Head) { h.AddNameString("authorization", "secret") },
		"AddKnown":      func(h *Head) { h.AddKnown(Authorization, []byte("authorization"), []byte("secret")) },
		"AddSpan":       func(h *Head) { h.Load(block); h.AddSpan(Authorization, 0, 13, 13, 6) },
		"Set":           func(h *Head) { h.Set(Authorization, []byte("secret")) },
		"SetString":     func(h *Head) { h.SetString(Authorization, "secret") },
		"SetName":       func(h *Head) { h.SetName("authorization", "secret") },
		"CopyFrom": func(h *Head) {
			var from Head
			from.AddString(Authorization, "secret")
			h.CopyFrom(&from)
		},
	} {
		var h Head
		add(&h)
		if !h.Has(Authorization) || string(h.Get(Authorization)) != "secret" || string(h.GetName("authorization")) != "secret" {
			t.Errorf("%s: Has %v, Get %q, GetName %q", name, h.Has(Authorization), h.Get(Authorization), h.GetName("authorization"))
		}
		if h.Del(Authorization); h.Has(Authorization) || h.GetName("authorization") != nil {
			t.Errorf("%s: still there after Del", name)
		}
	}
}
