// Package report turns what was measured into rows and writes them for machines
// (JSON), for people (Markdown) and for the eye (SVG), each beside the gate and
// the goal that it is measured against. It is pure but for Write.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"lateen.dev/lateen/bench/internal/measure"
)

// Target is the peer of rows that compare Lateen with a fixed number.
const Target = "target"

// Row compares Lateen with one peer in one metric. Ratios are Lateen's value
// divided by the peer's within one round; Ratio is their median.
type Row struct {
	Scenario string  `json:"scenario"`
	Metric   string  `json:"metric"`
	Peer     string  `json:"peer"`
	Ratio    float64 `json:"ratio"`
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
	Pairs    int     `json:"pairs"`
	// Lateen and Other are medians in Unit.
	Lateen float64 `json:"lateen"`
	Other  float64 `json:"other"`
	Unit   string  `json:"unit"`
	// Invalid says why the row does not count.
	Invalid string `json:"invalid,omitempty"`
	// GeneratorBound: without a proxy the generator brings less than 1.3 times
	// as many answers, so that only CPU may be judged.
	GeneratorBound bool `json:"generatorBound,omitempty"`
	// Commit, At and Load are of this row: a report may be made in several runs.
	Commit string `json:"commit"`
	At     string `json:"at"`
	Load   string `json:"load"`
}

// Report is everything that is written.
type Report struct {
	Machine  string            `json:"machine"`
	Commit   string            `json:"commit"`
	Versions map[string]string `json:"versions"`
	// Features are what each side does in the scenarios with duties.
	Features map[string]string `json:"features"`
	Notes    []string          `json:"notes,omitempty"`
	Skipped  []string          `json:"skipped,omitempty"`
	Rows     []Row             `json:"rows"`
}

// units by metric.
var units = map[string]string{
	measure.CPU: "µs/request", measure.RPS: "1/s", measure.P50: "µs", measure.P99: "µs", measure.Mean: "µs", measure.RSS: "KiB",
}

// Compare makes the row of one metric from the rounds of both sides.
func Compare(scenario, metric, peer string, lateen, other []measure.Slice) Row {
	r := Row{Scenario: scenario, Metric: metric, Peer: peer, Unit: units[metric]}
	var ratios, mine, theirs []float64
	for i := range min(len(lateen), len(other)) {
		a, b := lateen[i], other[i]
		for who, s := range map[string]measure.Slice{"lateen": a, peer: b} {
			if s.Errors > 0 && r.Invalid == "" {
				r.Invalid = fmt.Sprintf("%s: %d errors, the first: %s", who, s.Errors, s.First)
			}
		}
		mine, theirs = append(mine, a.Values[metric]), append(theirs, b.Values[metric])
		if b.Values[metric] > 0 {
			ratios = append(ratios, a.Values[metric]/b.Values[metric])
		}
	}
	r.Lateen, r.Other, r.Pairs = round(measure.Median(mine)), round(measure.Median(theirs)), len(ratios)
	if len(ratios) == 0 {
		if r.Invalid == "" {
			r.Invalid = "nothing to divide by"
		}
		return r
	}
	r.Ratio, r.Min, r.Max = round(measure.Median(ratios)), round(slices.Min(ratios)), round(slices.Max(ratios))
	return r
}

// Against makes the row of one metric against a fixed number.
func Against(scenario, metric string, lateen []measure.Slice, target float64, unit string) Row {
	fixed := make([]measure.Slice, len(lateen))
	for i := range fixed {
		fixed[i].Values = map[string]float64{metric: target}
	}
	r := Compare(scenario, metric, Target, lateen, fixed)
	r.Unit = unit
	return r
}

// round keeps four digits.
func round(v float64) float64 {
	var out float64
	_, _ = fmt.Sscan(fmt.Sprintf("%.4g", v), &out) // what was printed is a number
	return out
}

// Merge puts the rows of scenarios that were not run now behind those that
// were, from a report written before.
func (r *Report) Merge(before Report) {
	ran := map[string]bool{}
	for _, row := range r.Rows {
		ran[row.Scenario] = true
	}
	for _, row := range before.Rows {
		if !ran[row.Scenario] {
			r.Rows = append(r.Rows, row)
		}
	}
	slices.SortStableFunc(r.Rows, func(a, b Row) int { return rank(a.Scenario) - rank(b.Scenario) })
	for _, s := range before.Skipped {
		name, _, _ := strings.Cut(s, ": ")
		again := slices.ContainsFunc(r.Skipped, func(t string) bool { return strings.HasPrefix(t, name+": ") })
		if !again && !ran[name] {
			r.Skipped = append(r.Skipped, s)
		}
	}
	for k, v := range before.Versions {
		if _, ok := r.Versions[k]; !ok {
			r.Versions[k] = v
		}
	}
}

// Read reads a report; that of a file that is not there is empty.
func Read(path string) (r Report, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read %s: %w; remove it to begin anew", path, err)
	}
	return r, nil
}

// Write writes latest.json, latest.md and latest.svg into dir.
func (r *Report) Write(dir string) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	for name, content := range map[string]string{
		"latest.json": string(data) + "\n", "latest.md": r.Markdown(), "latest.svg": r.SVG(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}
