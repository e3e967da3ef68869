package store

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
)

func TestAppendAttributes_isJSON(t *testing.T) {
	for _, m := range []map[string]any{
		nil,
		{},
		{"a": "b", "n": int64(-1), "ok": true},
		{"quote\"": `back\slash`, "é": "line\nend\x00", "bad": "\xff", "html": "<&>"},
		{"f": 1.5, "list": []any{"x", int64(2)}, "m": map[string]any{"k": nil}, "int": 7},
	} {
		got, err := appendAttributes([]byte("x"), m)
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		if err := json.Unmarshal(got[1:], &a); err != nil {
			t.Errorf("%q: %v", got, err)
		}
		if err := json.Unmarshal(want, &b); err != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%s, want what %s says", got[1:], want)
		}
	}
	if _, err := appendAttributes(nil, map[string]any{"f": math.NaN()}); err == nil {
		t.Error("NaN is no JSON")
	}
}

func FuzzAppendText(f *testing.F) {
	f.Add("plain", "é\"\\\x00\xff")
	f.Fuzz(func(t *testing.T, k, v string) {
		got, err := appendAttributes(nil, map[string]any{k: v})
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(map[string]any{k: v})
		if err != nil {
			t.Fatal(err)
		}
		var a, b map[string]any
		if json.Unmarshal(got, &a) != nil || json.Unmarshal(want, &b) != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%s, want what %s says", got, want)
		}
	})
}
