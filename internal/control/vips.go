package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"

	"lateen.dev/lateen/internal/control/disk"
)

// vips gives virtual addresses to Services and ServiceEntry hosts that name
// none. An address is derived from its owner's name, so that it is the same in
// every run and does not depend on what else exists, save for the rare
// collision; what was given is written down and stays, even while its owner is
// away.
type vips struct {
	path     string
	prefixes []netip.Prefix
	given    map[string][]netip.Addr // by owner, an address of each prefix
	taken    map[netip.Addr]string
	changed  bool
}

// openVIPs reads what was given before. Addresses outside the prefixes, after
// these were changed, are given anew.
func openVIPs(path string, prefixes []netip.Prefix) (*vips, error) {
	v := &vips{path: path, given: make(map[string][]netip.Addr), taken: make(map[netip.Addr]string)}
	for _, p := range prefixes {
		if !p.IsValid() || hostBits(p) < 4 {
			return nil, fmt.Errorf("allocate service addresses: prefix %v: want at least 16 addresses", p)
		}
		v.prefixes = append(v.prefixes, p.Masked())
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return nil, fmt.Errorf("allocate service addresses: %w", err)
	}
	stored := make(map[string][]netip.Addr)
	if err := json.Unmarshal(data, &stored); err != nil {
		return nil, fmt.Errorf("allocate service addresses: read %s: %w: remove it to allocate anew", path, err)
	}
	for _, owner := range slices.Sorted(maps.Keys(stored)) {
		if addrs := stored[owner]; v.fits(addrs) {
			v.record(owner, addrs)
		}
	}
	v.changed = false
	return v, nil
}

// fits reports whether there is one free address of every prefix, in order.
func (v *vips) fits(addrs []netip.Addr) bool {
	if len(addrs) != len(v.prefixes) {
		return false
	}
	for i, a := range addrs {
		if !v.prefixes[i].Contains(a) || v.taken[a] != "" {
			return false
		}
	}
	return true
}

func (v *vips) record(owner string, addrs []netip.Addr) {
	v.given[owner] = addrs
	for _, a := range addrs {
		v.taken[a] = owner
	}
	v.changed = true
}

// assign returns the addresses of every owner; when a prefix is full, of all
// but those the error names. fixed are addresses that
// manifests name themselves: nobody else may have them, and who has one from
// before gets another.
func (v *vips) assign(owners []string, fixed map[netip.Addr]bool) (map[string][]netip.Addr, error) {
	out := make(map[string][]netip.Addr, len(owners))
	if len(v.prefixes) == 0 {
		return out, nil
	}
	for a := range fixed {
		if owner := v.taken[a]; owner != "" {
			v.forget(owner)
		}
	}
	wanted := make(map[string]bool, len(owners))
	for _, o := range owners {
		wanted[o] = true
	}
	var errs []error
	for _, owner := range slices.Sorted(slices.Values(owners)) {
		if v.given[owner] == nil {
			addrs, err := v.choose(owner, fixed, wanted)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			v.record(owner, addrs)
		}
		out[owner] = v.given[owner]
	}
	return out, errors.Join(errs...)
}

func (v *vips) forget(owner string) {
	for _, a := range v.given[owner] {
		delete(v.taken, a)
	}
	delete(v.given, owner)
	v.changed = true
}

// choose picks a free address of each prefix, beginning at the owner's hash. A
// full prefix takes addresses back from owners that are away.
func (v *vips) choose(owner string, fixed map[netip.Addr]bool, wanted map[string]bool) ([]netip.Addr, error) {
	out := make([]netip.Addr, 0, len(v.prefixes))
	for _, p := range v.prefixes {
		a, ok := v.probe(p, owner, func(a netip.Addr) bool { return v.taken[a] == "" && !fixed[a] })
		if !ok {
			a, ok = v.probe(p, owner, func(a netip.Addr) bool { return !wanted[v.taken[a]] && !fixed[a] })
		}
		if !ok {
			return nil, fmt.Errorf("allocate an address for %s: %v is full: give a larger prefix", owner, p)
		}
		if away := v.taken[a]; away != "" {
			v.forget(away)
		}
		out = append(out, a)
	}
	return out, nil
}

// probe walks a prefix from the owner's place until free says yes. The first
// and last addresses are left out: routers and broadcasts use them.
func (v *vips) probe(p netip.Prefix, owner string, free func(netip.Addr) bool) (netip.Addr, bool) {
	const most = 1 << 20 // enough for every prefix that a mesh can fill
	bits := min(hostBits(p), 32)
	count := uint64(1)<<bits - 2
	h := fnv.New64a()
	h.Write([]byte(owner)) // never fails
	start := h.Sum64() % count
	for i := range min(count, most) {
		a := nth(p, (start+i)%count+1)
		if free(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// nth returns the address n places after the first of a prefix.
func nth(p netip.Prefix, n uint64) netip.Addr {
	b := p.Addr().As16()
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low|n)
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// save writes what is given, if it changed.
func (v *vips) save() error {
	if !v.changed {
		return nil
	}
	data, err := json.MarshalIndent(v.given, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", v.path, err)
	}
	if err := disk.WriteFile(v.path, append(data, '\n'), 0o600); err != nil {
		return err
	}
	v.changed = false
	return nil
}
