package snapshot

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// duration converts d; absent means otherwise. Negative and absurd durations
// are refused by checking bounds once here.
func duration(d *durationpb.Duration, otherwise time.Duration) (time.Duration, error) {
	if d == nil {
		return otherwise, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, err
	}
	if d.AsDuration() < 0 {
		return 0, fmt.Errorf("negative duration %v", d.AsDuration())
	}
	return d.AsDuration(), nil
}

// into stores a duration at dst, or leaves what stands there when d is absent.
func into(dst *time.Duration, d *durationpb.Duration, field string) error {
	v, err := duration(d, *dst)
	if err != nil {
		return at(err, "%s", field)
	}
	*dst = v
	return nil
}

// firstError returns the first error that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// perMillion converts a fraction; absent means otherwise.
func perMillion(f *typepb.FractionalPercent, otherwise uint32) uint32 {
	if f == nil {
		return otherwise
	}
	n := uint64(f.GetNumerator())
	switch f.GetDenominator() {
	case typepb.FractionalPercent_HUNDRED:
		n *= 10_000
	case typepb.FractionalPercent_TEN_THOUSAND:
		n *= 100
	}
	return uint32(min(n, 1_000_000))
}

// percent converts a percentage; absent means otherwise.
func percent(p *typepb.Percent, otherwise float64) (float64, error) {
	if p == nil {
		return otherwise, nil
	}
	if v := p.GetValue(); math.IsNaN(v) || v < 0 || v > 100 {
		return 0, fmt.Errorf("percentage %v is outside 0 to 100", v)
	}
	return p.GetValue(), nil
}

// stringMatcher compiles an Envoy StringMatcher.
func stringMatcher(m *matcherpb.StringMatcher) (StringMatcher, error) {
	if m == nil {
		return StringMatcher{}, fmt.Errorf("string matcher is empty")
	}
	if err := only(m, "exact prefix suffix contains safe_regex ignore_case"); err != nil {
		return StringMatcher{}, err
	}
	out := StringMatcher{IgnoreCase: m.GetIgnoreCase()}
	switch p := m.GetMatchPattern().(type) {
	case *matcherpb.StringMatcher_Exact:
		out.Kind, out.Text = StringExact, p.Exact
	case *matcherpb.StringMatcher_Prefix:
		out.Kind, out.Text = StringPrefix, p.Prefix
	case *matcherpb.StringMatcher_Suffix:
		out.Kind, out.Text = StringSuffix, p.Suffix
	case *matcherpb.StringMatcher_Contains:
		out.Kind, out.Text = StringContains, p.Contains
	case *matcherpb.StringMatcher_SafeRegex:
		// Envoy ignores ignore_case for regexes.
		return regexMatcher(p.SafeRegex.GetRegex())
	default:
		return out, fmt.Errorf("string matcher has no pattern")
	}
	return out, nil
}

func stringMatchers(list []*matcherpb.StringMatcher) ([]StringMatcher, error) {
	out := make([]StringMatcher, 0, len(list))
	for i, m := range list {
		s, err := stringMatcher(m)
		if err != nil {
			return nil, at(err, "[%d]", i)
		}
		out = append(out, s)
	}
	return out, nil
}

// cidr converts a CIDR range; host bits are cut off.
func cidr(c *corepb.CidrRange) (netip.Prefix, error) {
	addr, err := netip.ParseAddr(c.GetAddressPrefix())
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("address_prefix: %w", err)
	}
	bits := int(c.GetPrefixLen().GetValue())
	if addr.Is4In6() && bits >= 96 {
		bits -= 96
	}
	p, err := addr.Unmap().WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("prefix_len: %w", err)
	}
	return p, nil
}

func cidrs(list []*corepb.CidrRange) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for i, c := range list {
		p, err := cidr(c)
		if err != nil {
			return nil, at(err, "[%d]", i)
		}
		out = append(out, p)
	}
	return out, nil
}

func port(v uint32) (uint16, error) {
	if v > math.MaxUint16 {
		return 0, fmt.Errorf("port %d is above 65535", v)
	}
	return uint16(v), nil
}

// socketAddress returns the IP address and port of an address.
func socketAddress(a *corepb.Address) (netip.AddrPort, error) {
	host, p, err := hostPort(a)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q is not an IP address", host)
	}
	return netip.AddrPortFrom(addr.Unmap(), p), nil
}

// hostPort returns the host text and port of a TCP socket address.
func hostPort(a *corepb.Address) (string, uint16, error) {
	s := a.GetSocketAddress()
	if s == nil {
		return "", 0, fmt.Errorf("address is not a socket_address")
	}
	if s.GetProtocol() != corepb.SocketAddress_TCP {
		return "", 0, fmt.Errorf("protocol %v is not supported", s.GetProtocol())
	}
	if s.GetNamedPort() != "" {
		return "", 0, fmt.Errorf("named_port is not supported")
	}
	p, err := port(s.GetPortValue())
	return s.GetAddress(), p, err
}

// metadataText returns one string of filter metadata, "" if absent.
func metadataText(m *corepb.Metadata, filter, key string) string {
	return structText(m.GetFilterMetadata()[filter], key)
}

func structText(s *structpb.Struct, key string) string {
	return s.GetFields()[key].GetStringValue()
}

// origin returns the stable origin id that our control plane attaches.
func origin(m *corepb.Metadata) Origin { return Origin(metadataText(m, "lateen", "origin")) }

// headerOps compiles header edits.
func headerOps(add []*corepb.HeaderValueOption, remove []string) (HeaderOps, error) {
	var ops HeaderOps
	for i, h := range add {
		if err := only(h, "header append append_action keep_empty_value"); err != nil {
			return ops, at(err, "headers_to_add[%d]", i)
		}
		v := HeaderValue{Name: strings.ToLower(h.GetHeader().GetKey()), Value: h.GetHeader().GetValue()}
		if raw := h.GetHeader().GetRawValue(); len(raw) > 0 {
			v.Value = string(raw)
		}
		if !validHeader(v) {
			return ops, fmt.Errorf("headers_to_add[%d]: header %q is not valid", i, v.Name)
		}
		if v.Name == "host" {
			v.Name = ":authority"
		}
		set := h.GetAppendAction() == corepb.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		//nolint:staticcheck // the deprecated spelling still arrives
		if a := h.GetAppend(); a != nil {
			set = !a.GetValue()
		}
		switch {
		case set:
			ops.Set = append(ops.Set, v)
		case h.GetAppendAction() != corepb.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
			return ops, fmt.Errorf("headers_to_add[%d]: append_action %v is not supported", i, h.GetAppendAction())
		default:
			ops.Add = append(ops.Add, v)
		}
	}
	for i, name := range remove {
		name = strings.ToLower(name)
		if !validHeader(HeaderValue{Name: name}) || name[0] == ':' || name == "host" {
			return ops, fmt.Errorf("headers_to_remove[%d]: header %q cannot be removed", i, name)
		}
		ops.Remove = append(ops.Remove, name)
	}
	return ops, nil
}

// validHeader refuses what would break a head: empty names, and CR, LF or NUL.
func validHeader(v HeaderValue) bool {
	return v.Name != "" && !strings.ContainsAny(v.Name, "\r\n\x00 \t") && !strings.ContainsAny(v.Value, "\r\n\x00")
}
