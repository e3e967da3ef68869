package cli

import (
	"fmt"
	"strings"
)

// resourceColumns says how resources of a kind are shown.
func resourceColumns(word string) (header string, rows func(name string, t tree) []row) {
	switch word {
	case "listener":
		return "LISTENER CHAIN MATCH DOES", listenerRows
	case "route":
		return "ROUTES HOST ROUTE MATCH GOES", routeRows
	case "cluster":
		return "CLUSTER TYPE BALANCING TLS", clusterRows
	case "endpoint":
		return "CLUSTER ADDRESS HEALTH WEIGHT", endpointRows
	}
	return "SECRET KIND", func(name string, t tree) []row {
		kind := "certificate"
		if t.at("validation_context") != nil {
			kind = "roots"
		}
		return []row{{cells: []string{name, kind}}}
	}
}

func listenerRows(name string, t tree) []row {
	var rows []row
	chains := t.list("filter_chains")
	if d, ok := t.at("default_filter_chain").(map[string]any); ok {
		chains = append(chains, d)
	}
	for _, chain := range chains {
		origin := chain.origin()
		if origin == "" {
			origin = t.origin()
		}
		rows = append(rows, row{[]string{name, chain.text("name"), chainMatch(chain), chainAction(chain)}, origin})
	}
	return rows
}

func chainMatch(chain tree) string {
	m := tree{"m": chain.at("filter_chain_match")}
	var parts []string
	for _, key := range []string{"destination_port", "transport_protocol", "server_names", "application_protocols"} {
		if v := m.text("m", key); v != "" {
			parts = append(parts, fmt.Sprintf("%s=%s", strings.TrimSuffix(key, "_protocol"), v))
		}
	}
	if len(parts) == 0 {
		return "any"
	}
	return strings.Join(parts, ",")
}

func chainAction(chain tree) string {
	for _, f := range chain.list("filters") {
		config := tree{"c": f.at("typed_config")}
		switch {
		case config.text("c", "rds", "route_config_name") != "":
			return "routes " + config.text("c", "rds", "route_config_name")
		case config.text("c", "route_config", "name") != "":
			return "routes inline " + config.text("c", "route_config", "name")
		case config.text("c", "cluster") != "":
			return "tcp to " + config.text("c", "cluster")
		}
	}
	return ""
}

func routeRows(name string, t tree) []row {
	var rows []row
	for _, host := range t.list("virtual_hosts") {
		for _, r := range host.list("routes") {
			rows = append(rows, row{[]string{name, host.text("name"), r.text("name"), routeMatch(r), routeAction(r)}, r.origin()})
		}
	}
	return rows
}

func routeMatch(r tree) string {
	var parts []string
	for _, key := range []string{"prefix", "path", "path_separated_prefix"} {
		if v := r.text("match", key); v != "" {
			parts = append(parts, strings.TrimPrefix(key+" "+v, "path "))
		}
	}
	if v := r.text("match", "safe_regex", "regex"); v != "" {
		parts = append(parts, "regex "+v)
	}
	for _, h := range r.list("match", "headers") {
		parts = append(parts, conditionText(h, "header "))
	}
	for _, q := range r.list("match", "query_parameters") {
		parts = append(parts, conditionText(q, "query "))
	}
	return strings.Join(parts, ", ")
}

// conditionText says what a header or a query parameter must be:
// `header canary: true`, `no header x`, `header x: prefix a`.
func conditionText(c tree, kind string) string {
	name := strings.TrimPrefix(c.text("name"), ":")
	if c.text("name") != name {
		kind = "" // :method and :authority are what they say
	}
	text := kind + name
	for _, where := range []string{"string_match", "range_match"} {
		m := tree{"m": c.at(where)}
		for _, how := range []string{"exact", "prefix", "suffix", "contains"} {
			if v := m.text("m", how); v != "" {
				text += ": " + strings.TrimPrefix(how+" "+v, "exact ")
			}
		}
		if v := m.text("m", "safe_regex", "regex"); v != "" {
			text += ": regex " + v
		}
	}
	if c.at("present_match") == false || c.at("invert_match") == true {
		text = "not " + text
	}
	return text
}

func routeAction(r tree) string {
	if v := r.text("route", "cluster"); v != "" {
		return v
	}
	var weighted []string
	for _, c := range r.list("route", "weighted_clusters", "clusters") {
		weighted = append(weighted, c.text("name")+"="+c.text("weight"))
	}
	switch {
	case len(weighted) > 0:
		return strings.Join(weighted, " ")
	case r.at("redirect") != nil:
		return "redirect " + r.text("redirect", "host_redirect") + r.text("redirect", "path_redirect")
	case r.at("direct_response") != nil:
		return "answers " + r.text("direct_response", "status")
	}
	return ""
}

func clusterRows(name string, t tree) []row {
	tls := "no"
	if len(t.list("transport_socket_matches")) > 0 {
		tls = "auto"
	} else if t.at("transport_socket") != nil {
		tls = "yes"
	}
	lb := t.text("lb_policy")
	if lb == "" {
		lb = "ROUND_ROBIN"
	}
	return []row{{[]string{name, t.text("type"), lb, tls}, t.origin()}}
}

func endpointRows(name string, t tree) []row {
	var rows []row
	for _, locality := range t.list("endpoints") {
		for _, e := range locality.list("lb_endpoints") {
			address := e.text("endpoint", "address", "socket_address", "address") + ":" +
				e.text("endpoint", "address", "socket_address", "port_value")
			health := e.text("health_status")
			if health == "" {
				health = "HEALTHY"
			}
			rows = append(rows, row{cells: []string{name, address, health, e.text("load_balancing_weight")}})
		}
	}
	return rows
}
