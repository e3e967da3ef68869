package translate

import (
	"net/netip"
	"slices"

	"lateen.dev/lateen/internal/control/mesh"
	ndspb "lateen.dev/lateen/internal/xdspb/nds"
)

// addNames makes the table that the proxy's DNS server answers from: virtual
// addresses, or those of the endpoints for headless services.
func (b *builder) addNames() {
	table := &ndspb.NameTable{Table: map[string]*ndspb.NameTable_NameInfo{}}
	for _, s := range b.scope.Services {
		ips := s.VIPs
		if s.Headless {
			ips = b.endpointIPs(s)
		}
		if len(ips) == 0 {
			continue
		}
		info := &ndspb.NameTable_NameInfo{Registry: string(s.Registry)}
		for _, ip := range ips {
			info.Ips = append(info.Ips, ip.String())
		}
		if s.Registry == mesh.Kubernetes {
			info.Shortname, info.Namespace = s.Name, s.Namespace
		}
		table.Table[s.Host] = info
		for _, a := range s.Aliases {
			if table.Table[a] == nil {
				table.Table[a] = &ndspb.NameTable_NameInfo{Ips: info.GetIps(), Registry: info.GetRegistry()}
			}
		}
	}
	b.add(NameType, NameTable, table)
}

func (b *builder) endpointIPs(s *mesh.Service) []netip.Addr {
	var out []netip.Addr
	for _, e := range b.m.Endpoints(s) {
		if a, err := netip.ParseAddr(e.Address); err == nil && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
