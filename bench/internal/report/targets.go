package report

import "slices"

// Scenarios in the order of reports.
var order = []string{
	"h1-mesh-c64", "h1-plain-c64", "h1-plain-c512", "h1-mesh-c8",
	"chain-mtls-c8", "chain-mtls-c64", "chain-mtls-c256", "chain-mtls-1000rps", "chain-bulk-fairness",
	"h2c-c8-m32", "h2c-c64-m32", "grpc-unary-c8-m32",
	"tcp-rr", "tcp-bulk", "handshake", "handshake-hybrid", "idle-conn", "idle-conn-mtls", "rss-100svc", "rss-1000svc",
}

func rank(scenario string) int {
	if i := slices.Index(order, scenario); i >= 0 {
		return i
	}
	return len(order)
}

// bound is what a ratio is held against; 0 means none. Where atLeast is set the
// ratio should not be below, else not above.
type bound struct {
	gate, goal float64
	atLeast    bool
}

// bounds by scenario, metric and peer. Gates are what must hold before the
// performance issue is resolved, goals what is aimed at. Against Target the
// ratio is Lateen's value to the number in Other.
var bounds = map[[3]string]bound{
	{"h1-mesh-c64", "cpu", "envoy"}:   {goal: 0.25},
	{"h1-mesh-c64", "cpu", "nginx"}:   {gate: 0.66, goal: 0.66},
	{"h1-mesh-c64", "cpu", "haproxy"}: {gate: 0.71, goal: 0.71},
	{"h1-mesh-c8", "cpu", "nginx"}:    {gate: 1.00, goal: 0.85},
	{"h1-mesh-c8", "cpu", "haproxy"}:  {gate: 1.00, goal: 0.85},

	{"h1-plain-c64", "cpu", "nginx"}:    {gate: 0.80, goal: 0.72},
	{"h1-plain-c64", "cpu", "haproxy"}:  {gate: 0.82, goal: 0.72},
	{"h1-plain-c512", "cpu", "envoy"}:   {goal: 0.35},
	{"h1-plain-c512", "cpu", "nginx"}:   {gate: 0.50, goal: 0.50},
	{"h1-plain-c512", "cpu", "haproxy"}: {gate: 0.58, goal: 0.58},

	{"chain-mtls-c8", "cpu", "envoy"}:     {goal: 0.40},
	{"chain-mtls-c8", "cpu", "nginx"}:     {gate: 0.85, goal: 0.80},
	{"chain-mtls-c8", "cpu", "haproxy"}:   {gate: 0.82, goal: 0.78},
	{"chain-mtls-c64", "cpu", "envoy"}:    {goal: 0.25},
	{"chain-mtls-c64", "cpu", "nginx"}:    {gate: 0.45, goal: 0.42},
	{"chain-mtls-c64", "cpu", "haproxy"}:  {gate: 0.50, goal: 0.45},
	{"chain-mtls-c256", "cpu", "envoy"}:   {goal: 0.20},
	{"chain-mtls-c256", "cpu", "nginx"}:   {gate: 0.28, goal: 0.25},
	{"chain-mtls-c256", "cpu", "haproxy"}: {gate: 0.33, goal: 0.30},
	{"chain-mtls-c64", "rps", "envoy"}:    {goal: 3, atLeast: true},
	{"chain-mtls-c64", "rps", "nginx"}:    {gate: 2.2, goal: 2.3, atLeast: true},
	{"chain-mtls-c64", "rps", "haproxy"}:  {gate: 2.1, goal: 2.2, atLeast: true},
	{"chain-mtls-c256", "rps", "envoy"}:   {goal: 4, atLeast: true},
	{"chain-mtls-c256", "rps", "nginx"}:   {gate: 4, goal: 4, atLeast: true},
	{"chain-mtls-c256", "rps", "haproxy"}: {gate: 3, goal: 3, atLeast: true},

	{"chain-mtls-1000rps", "cpu", "envoy"}:    {goal: 0.30},
	{"chain-mtls-1000rps", "mean", "envoy"}:   {goal: 0.6},
	{"chain-mtls-1000rps", "p99", "envoy"}:    {goal: 0.6},
	{"chain-mtls-1000rps", "cpu", "nginx"}:    {gate: 0.65, goal: 0.60},
	{"chain-mtls-1000rps", "mean", "nginx"}:   {gate: 0.70, goal: 0.70},
	{"chain-mtls-1000rps", "p99", "nginx"}:    {goal: 0.70},
	{"chain-mtls-1000rps", "cpu", "haproxy"}:  {gate: 0.75, goal: 0.70},
	{"chain-mtls-1000rps", "mean", "haproxy"}: {gate: 0.75},
	{"chain-bulk-fairness", "p99", Without}:   {gate: 1.5, goal: 1.5},

	{"h2c-c8-m32", "cpu", "envoy"}:          {goal: 0.35},
	{"h2c-c8-m32", "cpu", "nginx"}:          {gate: 0.58, goal: 0.40},
	{"h2c-c8-m32", "cpu", "haproxy"}:        {gate: 1.0, goal: 0.60},
	{"h2c-c64-m32", "cpu", "nginx"}:         {gate: 0.50, goal: 0.35},
	{"h2c-c64-m32", "cpu", "haproxy"}:       {gate: 1.5, goal: 1.0},
	{"grpc-unary-c8-m32", "cpu", "envoy"}:   {goal: 0.35},
	{"grpc-unary-c8-m32", "cpu", "nginx"}:   {gate: 0.58, goal: 0.40},
	{"grpc-unary-c8-m32", "cpu", "haproxy"}: {gate: 1.0, goal: 0.60},

	{"tcp-rr", "cpu", "envoy"}:      {goal: 0.80},
	{"tcp-rr", "cpu", "haproxy"}:    {gate: 0.95, goal: 0.95},
	{"tcp-bulk", "cpu", "envoy"}:    {goal: 0.60},
	{"tcp-bulk", "cpu", "haproxy"}:  {gate: 0.55, goal: 0.55},
	{"handshake", "cpu", "envoy"}:   {goal: 1.0},
	{"handshake", "cpu", "nginx"}:   {gate: 0.45, goal: 0.45},
	{"handshake", "cpu", "haproxy"}: {gate: 0.40, goal: 0.40},

	{"idle-conn", "rss", "envoy"}:      {goal: 0.10},
	{"idle-conn", "rss", "nginx"}:      {goal: 0.6},
	{"idle-conn", "rss", Target}:       {gate: 1},
	{"idle-conn-mtls", "rss", "envoy"}: {goal: 0.10},
	{"idle-conn-mtls", "rss", Target}:  {gate: 1, goal: 1},
	{"rss-100svc", "rss", "envoy"}:     {goal: 0.40},
	{"rss-100svc", "rss", Target}:      {gate: 1},
	{"rss-1000svc", "rss", "envoy"}:    {goal: 0.40},
}

// Without is the peer of chain-bulk-fairness: the same without the bulk stream.
const Without = "without-bulk"

// Limits are the absolute numbers of rows against Target, in KiB.
var Limits = map[string]float64{
	"idle-conn": 0.6, "idle-conn-mtls": 36, "rss-100svc": 22 * 1024,
}

// minPairs is how many pairs a gate asks for.
const minPairs = 9

// Verdict says whether a row keeps its gate: "kept", "missed", "" where there
// is none, or why nobody can say.
func (r Row) Verdict() string {
	b := bounds[[3]string{r.Scenario, r.Metric, r.Peer}]
	switch {
	case b.gate == 0:
		return ""
	case r.Invalid != "":
		return "invalid"
	case r.GeneratorBound && r.Metric != "cpu":
		return "generator-bound"
	case b.atLeast && r.Ratio < b.gate, !b.atLeast && r.Ratio > b.gate:
		return "**missed**" + r.few()
	}
	return "kept" + r.few()
}

// few notes that a verdict rests on too few pairs. Memory of a fresh process
// hardly varies, so that there it needs no such number.
func (r Row) few() string {
	if r.Pairs < minPairs && r.Metric != "rss" {
		return ", too few pairs"
	}
	return ""
}
