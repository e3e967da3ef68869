package cli

import (
	"fmt"
	"strings"
	"testing"

	"lateen.dev/lateen/internal/finding"
)

func TestTeller_printsEachFindingOnce(t *testing.T) {
	var out strings.Builder
	teller := &teller{w: &out, folder: "/home/me", told: map[string]bool{}}
	web := finding.Object{Kind: "VirtualService", Name: "web", Namespace: "default"}
	broken := finding.Newf(finding.Syntax, finding.Object{}, "", finding.Position{File: "/home/me/m/a.yaml", Line: 4, Column: 1}, "not valid YAML").WithHint("complete it")
	weights := finding.Newf(finding.WeightSum, web, "spec.http[0]", finding.Position{File: "/etc/b.yaml", Line: 7, Column: 5}, "the weights sum to 60")
	for _, step := range []struct {
		now  []finding.Finding
		want string
	}{
		{nil, ""},
		{[]finding.Finding{broken, weights}, "  error      m/a.yaml:4:1  LAT0002\n             not valid YAML\n             hint: complete it\n" +
			"  warning    /etc/b.yaml:7:5  LAT0112  VirtualService/web.default\n             the weights sum to 60\n"},
		{[]finding.Finding{broken, weights}, ""},
		{[]finding.Finding{weights}, "  findings   no error is left\n"},
		{[]finding.Finding{broken}, "  error      m/a.yaml:4:1  LAT0002\n             not valid YAML\n             hint: complete it\n"},
	} {
		out.Reset()
		teller.look(step.now)
		if out.String() != step.want {
			t.Errorf("got\n%s\nwant\n%s", out.String(), step.want)
		}
	}
	var many []finding.Finding
	for i := range tellAtOnce + 3 {
		f := weights
		f.Message = fmt.Sprint(i)
		many = append(many, f)
	}
	out.Reset()
	teller.look(many)
	if got := strings.Count(out.String(), "LAT0112"); got != tellAtOnce || !strings.Contains(out.String(), "and 3 more") {
		t.Errorf("%d findings at once:\n%s", got, out.String())
	}
}
