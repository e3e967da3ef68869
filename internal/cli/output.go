package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"
)

// apiVersion says which form the machine output has; it only gains fields.
const apiVersion = "lateen.dev/v1alpha1"

// print writes v as the --output flag asks; table writes the human form.
func (o *options) print(v any, table func(w io.Writer)) error {
	switch o.output {
	case "table", "":
		table(o.out)
		return nil
	case "json":
		enc := json.NewEncoder(o.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		return o.printYAML(v)
	}
	return fail(exitUsage, "want table, json or yaml", "output format %q is unknown", o.output)
}

// printYAML goes through JSON, so that both forms have the same names.
func (o *options) printYAML(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	var plain any
	if err := json.Unmarshal(data, &plain); err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	enc := yaml.NewEncoder(o.out)
	enc.SetIndent(2)
	if err := enc.Encode(plain); err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	return enc.Close()
}

// columns writes rows as aligned columns with a header.
func columns(w io.Writer, header string, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(header, " ", "\t"))
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	_ = tw.Flush()
}

// age prints a duration as people say it: 12s, 4m, 3h, 2d.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
