package report

import (
	"fmt"
	"html"
	"strings"
)

// Measures of the plot, in pixels.
const (
	labelWidth = 150
	plotWidth  = 560
	barHeight  = 14
	barGap     = 4
	groupGap   = 16
	topMargin  = 54
	// full is the ratio at the right edge.
	full = 1.5
)

// colours by peer.
var colours = map[string]string{"envoy": "#b5476d", "nginx": "#2f8f4e", "haproxy": "#3b6fb5"}

// SVG draws the CPU ratios: a bar for each peer, a line at 1, a tick at the
// gate. Bars that do not reach the line are work that Lateen saves.
func (r *Report) SVG() string {
	var body strings.Builder
	y, last := topMargin, ""
	for _, row := range r.Rows {
		colour, known := colours[row.Peer]
		if row.Metric != "cpu" || row.Invalid != "" || !known {
			continue
		}
		if row.Scenario != last {
			if last != "" {
				y += groupGap
			}
			fmt.Fprintf(&body, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-8, y+11, html.EscapeString(row.Scenario))
			last = row.Scenario
		}
		fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", labelWidth, y, at(row.Ratio), barHeight, colour)
		fmt.Fprintf(&body, `<text x="%d" y="%d">%.2f %s</text>`+"\n", labelWidth+at(row.Ratio)+5, y+11, row.Ratio, html.EscapeString(row.Peer))
		fmt.Fprintf(&body, `<path d="M%d %d H%d" stroke="#222" stroke-width="1"/>`+"\n", labelWidth+at(row.Min), y+barHeight/2, labelWidth+at(row.Max))
		if gate := bounds[[3]string{row.Scenario, row.Metric, row.Peer}].gate; gate > 0 {
			fmt.Fprintf(&body, `<path d="M%d %d v%d" stroke="#d60" stroke-width="3"/>`+"\n", labelWidth+at(gate), y-1, barHeight+2)
		}
		y += barHeight + barGap
	}
	height := y + 20
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", labelWidth+plotWidth+110, height)
	b.WriteString(`<rect width="100%" height="100%" fill="#fff"/>` + "\n")
	fmt.Fprintf(&b, `<text x="%d" y="20" font-size="15">CPU of Lateen per request, as a share of the peer's (less is better)</text>`+"\n", 12)
	fmt.Fprintf(&b, `<text x="%d" y="38" fill="#555">thin lines: least and greatest of the pairs; orange: gate; %s</text>`+"\n", 12, html.EscapeString(r.Commit))
	fmt.Fprintf(&b, `<path d="M%d %d V%d" stroke="#999" stroke-dasharray="4 3"/>`+"\n", labelWidth+at(1), topMargin-6, y)
	b.WriteString(body.String())
	b.WriteString("</svg>\n")
	return b.String()
}

// at is the distance of a ratio from the left edge of the plot.
func at(ratio float64) int { return int(min(ratio, full) / full * plotWidth) }
