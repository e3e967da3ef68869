package mesh

import (
	"slices"
	"strconv"
	"strings"

	networkingpb "istio.io/api/networking/v1alpha3"

	"lateen.dev/lateen/internal/resource"
)

// readDestinationRules decodes and merges the rules of each namespace. Rules
// for one host with the same workload selector and visibility become one: the
// subsets are united, the first of a name counts, and the oldest rule that has
// a traffic policy gives it.
func (m *Mesh) readDestinationRules(byKind map[resource.Kind][]*resource.Object) {
	m.drByNamespace = map[string][]*DestinationRule{}
	merged := map[string]*DestinationRule{}
	for _, o := range byKind["DestinationRule"] {
		spec, ok := o.Spec.(*networkingpb.DestinationRule)
		if !ok {
			continue
		}
		d := &DestinationRule{
			Name: o.Name, Namespace: o.Namespace, Object: o, Host: m.ResolveHost(spec.GetHost(), o.Namespace),
			Policy: spec.GetTrafficPolicy(), Selector: spec.GetWorkloadSelector().GetMatchLabels(),
			ExportTo: parseVisibility(spec.GetExportTo(), m.Config.GetDefaultDestinationRuleExportTo()),
			Objects:  []*resource.Object{o},
		}
		for i, s := range spec.GetSubsets() {
			d.Subsets = append(d.Subsets, Subset{Subset: s, Origin: Origin{Object: o, Path: "spec.subsets[" + strconv.Itoa(i) + "]"}})
		}
		key := strings.Join([]string{d.Namespace, d.Host, labelText(d.Selector), strings.Join(sortedCopy(spec.GetExportTo()), ",")}, "\x00")
		if first := merged[key]; first != nil {
			first.merge(d)
			continue
		}
		merged[key] = d
		m.destinationRules = append(m.destinationRules, d)
		m.drByNamespace[d.Namespace] = append(m.drByNamespace[d.Namespace], d)
	}
}

func (d *DestinationRule) merge(later *DestinationRule) {
	d.Objects = append(d.Objects, later.Object)
	if d.Policy == nil {
		d.Policy = later.Policy
	}
	for _, s := range later.Subsets {
		if _, ok := d.Subset(s.Subset.GetName()); !ok {
			d.Subsets = append(d.Subsets, s)
		}
	}
}

func labelText(labels map[string]string) string {
	var b strings.Builder
	for _, k := range sortedKeys(labels) {
		b.WriteString(k + "=" + labels[k] + ",")
	}
	return b.String()
}

func sortedCopy(in []string) []string {
	out := slices.Clone(in)
	slices.Sort(out)
	return out
}

// DestinationRuleFor returns the rule that a proxy of the given namespace and
// labels applies to a service, nil for none. Rules of the proxy's own namespace
// come first, then those of the service's namespace, then those of the root
// namespace; the most specific host wins within a namespace, and a rule with a
// workload selector beats one without. There is no merging across namespaces.
func (m *Mesh) DestinationRuleFor(s *Service, namespace string, labels map[string]string) *DestinationRule {
	tiers := []string{namespace, s.Namespace, m.RootNamespace}
	if namespace == m.RootNamespace {
		tiers = []string{s.Namespace, m.RootNamespace}
	}
	for i, ns := range tiers {
		if slices.Contains(tiers[:i], ns) {
			continue
		}
		if d := m.bestRule(ns, s.Host, namespace, labels); d != nil {
			return d
		}
	}
	return nil
}

func (m *Mesh) bestRule(ruleNamespace, host, namespace string, labels map[string]string) *DestinationRule {
	var best *DestinationRule
	for _, d := range m.drByNamespace[ruleNamespace] {
		if !HostMatches(d.Host, host) || !d.ExportTo.Allows(d.Namespace, namespace) {
			continue
		}
		if len(d.Selector) > 0 && (d.Namespace != namespace || !matches(d.Selector, labels)) {
			continue
		}
		switch {
		case best == nil:
			best = d
		case d.Host != best.Host:
			if moreSpecific(d.Host, best.Host) < 0 {
				best = d
			}
		case len(best.Selector) == 0 && len(d.Selector) > 0:
			best = d
		}
	}
	return best
}
