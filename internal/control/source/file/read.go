package file

import (
	"slices"

	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// Content is one file as it was read.
type Content struct {
	Name string
	Data []byte
}

// Read reads the configuration files under the given paths once, in the order
// Load has.
func Read(paths []string) ([]Content, []finding.Finding) {
	var contents []Content
	var findings []finding.Finding
	for _, p := range paths {
		files, problems := listFiles(p, map[string]bool{})
		findings = append(findings, problems...)
		for _, name := range files {
			if slices.ContainsFunc(contents, func(c Content) bool { return c.Name == name }) {
				continue
			}
			data, err := readFile(name)
			if err != nil {
				findings = append(findings, unreadable(name, err))
				continue
			}
			contents = append(contents, Content{Name: name, Data: data})
		}
	}
	return contents, findings
}

// Decode makes of files that were read what Load would make of them.
func Decode(contents []Content) State {
	s := &Source{files: map[string]*content{}}
	for _, c := range contents {
		objects, findings := resource.Decode(c.Name, c.Data)
		s.files[c.Name] = &content{data: c.Data, objects: objects, findings: findings}
		s.order = append(s.order, c.Name)
	}
	return s.merge(nil)
}
