package upstream

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"
	"strconv"
)

// Hash is the stable 64-bit hash of consistent balancing: FNV-1a with a
// finalizer, the same in every process, so that all proxies agree on where a
// key lives.
func Hash(seed uint64, data []byte) uint64 {
	h := seed ^ 14695981039346656037
	for _, b := range data {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return mix(h)
}

// HashAddr is the hash of a client's address, the same for both forms of an
// IPv4 address.
func HashAddr(a netip.Addr) uint64 {
	b := a.As16()
	return Hash(0, b[:])
}

// mix is the finalizer of splitmix64: every input bit reaches every output bit.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// ring is a consistent-hash table: sorted points (ring hash) or a full lookup
// table (Maglev).
type ring struct {
	points []point
}

type point struct {
	hash uint64
	host *host
}

// Sizes as in Envoy: at least 1024 points, at most 8 Mi; Maglev 65537 slots.
const (
	defaultRing   = 1024
	maxRing       = 8 << 20
	defaultMaglev = 65537
)

// newRing places each endpoint on the ring by weight.
func newRing(hosts []*host, minimum uint64) ring {
	if len(hosts) == 0 {
		return ring{}
	}
	size := max(minimum, defaultRing)
	size = min(max(size, uint64(len(hosts))), maxRing)
	total := uint64(0)
	for _, h := range hosts {
		total += uint64(h.weight)
	}
	var points []point
	for _, h := range hosts {
		n := max(1, (size*uint64(h.weight)+total-1)/total)
		key := append([]byte(h.addr.String()), '_')
		for i := range n {
			points = append(points, point{Hash(0, strconv.AppendUint(key, i, 10)), h})
		}
	}
	slices.SortFunc(points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), a.host.addr.Compare(b.host.addr))
	})
	return ring{points}
}

// newMaglev fills a lookup table in which every endpoint has its share of slots
// and few slots change when endpoints come and go (Maglev, NSDI 2016, §3.4).
func newMaglev(hosts []*host, size uint64) ring {
	if len(hosts) == 0 {
		return ring{}
	}
	if size == 0 {
		size = defaultMaglev
	}
	sorted := slices.Clone(hosts)
	slices.SortFunc(sorted, func(a, b *host) int { return a.addr.Compare(b.addr) })
	heaviest := uint32(1)
	for _, h := range sorted {
		heaviest = max(heaviest, h.weight)
	}
	type walk struct{ offset, skip, next, credit uint64 }
	walks := make([]walk, len(sorted))
	for i, h := range sorted {
		name := []byte(h.addr.String())
		walks[i] = walk{offset: Hash(0, name) % size, skip: Hash(1, name)%(size-1) + 1}
	}
	table := make([]point, size)
	for filled := uint64(0); filled < size; {
		for i := range walks {
			w := &walks[i]
			// A lighter endpoint sits out rounds in proportion to its weight.
			if w.credit += uint64(sorted[i].weight); w.credit < uint64(heaviest) {
				continue
			}
			w.credit -= uint64(heaviest)
			slot := (w.offset + w.skip*w.next) % size
			for table[slot].host != nil {
				w.next++
				slot = (w.offset + w.skip*w.next) % size
			}
			table[slot].host = sorted[i]
			w.next++
			if filled++; filled == size {
				break
			}
		}
	}
	return ring{table}
}

// at returns the endpoint for a hash.
func (r *ring) at(hash uint64, maglev bool) *host {
	if maglev {
		return r.points[hash%uint64(len(r.points))].host
	}
	i := sort.Search(len(r.points), func(i int) bool { return r.points[i].hash >= hash })
	if i == len(r.points) {
		i = 0
	}
	return r.points[i].host
}
