package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Markdown is the report for people.
func (r *Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Lateen beside its peers\n\n- machine: %s\n- commit: %s\n", r.Machine, r.Commit)
	var versions []string
	for _, k := range slices.Sorted(maps.Keys(r.Versions)) {
		versions = append(versions, k+" "+r.Versions[k])
	}
	fmt.Fprintf(&b, "- versions: %s\n", strings.Join(versions, ", "))
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	b.WriteString(`
Each ratio is Lateen's value divided by the peer's within one round: below 1 is better but for rps. It is the median of so
many pairs; in brackets stand the least and the greatest. Gates must hold, goals are aimed at. A verdict on fewer than nine
pairs says so.

![CPU of Lateen and its peers](latest.svg)

| scenario | metric | peer | ratio (min–max) | gate | goal | gate is | Lateen | peer's | pairs |
|---|---|---|---|---|---|---|---|---|---|
`)
	for _, row := range r.Rows {
		b.WriteString(row.line())
	}
	if len(r.Skipped) > 0 {
		b.WriteString("\n## Skipped\n\n")
		for _, s := range r.Skipped {
			fmt.Fprintf(&b, "- *skipped* %s\n", s)
		}
	}
	b.WriteString("\n## What each side does where duties are asked for\n\n")
	for _, k := range slices.Sorted(maps.Keys(r.Features)) {
		fmt.Fprintf(&b, "- **%s**: %s\n", k, r.Features[k])
	}
	b.WriteString("\n## When the rows were measured\n\n| scenario | commit | at (UTC) | CPU pressure of the machine (avg10) |\n|---|---|---|---|\n")
	for i, row := range r.Rows {
		if i == 0 || r.Rows[i-1].Scenario != row.Scenario {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", row.Scenario, row.Commit, row.At, row.Load)
		}
	}
	return b.String()
}

func (r Row) line() string {
	b := bounds[[3]string{r.Scenario, r.Metric, r.Peer}]
	limit := func(v float64) string {
		switch {
		case v == 0:
			return "–"
		case b.atLeast:
			return fmt.Sprintf("≥ %.2g", v)
		}
		return fmt.Sprintf("≤ %.2f", v)
	}
	ratio := fmt.Sprintf("%.2f (%.2f–%.2f)", r.Ratio, r.Min, r.Max)
	if r.Invalid != "" {
		ratio = "*invalid*: " + strings.ReplaceAll(r.Invalid, "|", "/")
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %d |\n", r.Scenario, r.Metric, r.Peer, ratio,
		limit(b.gate), limit(b.goal), r.Verdict(), number(r.Lateen, r.Unit), number(r.Other, r.Unit), r.Pairs)
}

func number(v float64, unit string) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f %s", v, unit)
	case v >= 10:
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.2f %s", v, unit)
}
