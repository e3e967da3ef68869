package message

import "testing"

func TestLookup_agreesWithTheListOfNames(t *testing.T) {
	longest := 0
	for id := Host; id < nameCount; id++ {
		if got := Lookup([]byte(names[id])); got != id {
			t.Errorf("Lookup(%q) = %d, want %d", names[id], got, id)
		}
		longest = max(longest, len(names[id]))
	}
	if longest > maxName {
		t.Errorf("a name has %d bytes, Lookup gives up after %d", longest, maxName)
	}
	for _, other := range []string{"", "x", "hosT", "content-lengtx", "x-own", "x-envoy-upstream-rq-per-try-timeout-m"} {
		if got := Lookup([]byte(other)); got != Other {
			t.Errorf("Lookup(%q) = %d", other, got)
		}
	}
}

func FuzzLookup(f *testing.F) {
	for id := Host; id < nameCount; id++ {
		f.Add([]byte(names[id]))
	}
	f.Fuzz(func(t *testing.T, name []byte) {
		if got, want := Lookup(name), ids[string(name)]; got != want {
			t.Fatalf("Lookup(%q) = %d, want %d", name, got, want)
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	seen := [][]byte{[]byte("host"), []byte("user-agent"), []byte("x-request-id"), []byte("x-own"), []byte("accept")}
	for b.Loop() {
		for _, n := range seen {
			Lookup(n)
		}
	}
}
