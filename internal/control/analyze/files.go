package analyze

import (
	"fmt"

	"lateen.dev/lateen/internal/control/mesh"
	"lateen.dev/lateen/internal/control/source/file"
	"lateen.dev/lateen/internal/control/validate"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// Paths analyzes the files and folders as one mesh and returns everything found
// in them, decoding and validation included, and the number of objects. The
// error is that of paths of which nothing could be read.
func Paths(paths []string) (findings []finding.Finding, objects int, err error) {
	contents, problems := file.Read(paths)
	if len(contents) == 0 && len(problems) > 0 {
		return nil, 0, fmt.Errorf("read %s: %s", problems[0].Pos, problems[0].Message)
	}
	findings, objects = Files(contents)
	findings = append(problems, findings...)
	finding.Sort(findings)
	return findings, objects, nil
}

// Files analyzes files that were read as one mesh.
func Files(contents []file.Content) (findings []finding.Finding, objects int) {
	state := file.Decode(contents)
	findings = state.Findings
	for _, o := range state.Objects {
		findings = append(findings, validate.Object(o)...)
	}
	// The model holds refused objects too: what depends on them would otherwise
	// be reported as missing.
	m, _ := mesh.Build(mesh.Input{Objects: state.Objects}, nil)
	findings = append(findings, Run(m, state.Objects)...)
	r := &remedies{mesh: m, byObject: map[finding.Object]*resource.Object{}, texts: map[string]*resource.Text{}}
	for _, c := range contents {
		r.texts[c.Name] = resource.NewText(c.Name, c.Data)
	}
	for _, o := range state.Objects {
		r.byObject[o.Object()] = o
		r.templates = append(r.templates, templatesOf(o)...)
	}
	r.attach(findings)
	finding.Sort(findings)
	return findings, len(state.Objects)
}
