package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"lateen.dev/lateen/internal/control/disk"
	"lateen.dev/lateen/internal/control/validate"
	"lateen.dev/lateen/internal/finding"
	"lateen.dev/lateen/internal/resource"
)

// acceptor decides which version of each object is in force. An object that
// validation refuses leaves its last good version in place. Accepted versions
// are also kept on disk: a policy that is broken, or whose file does not
// parse, when the process starts must not be missing from the mesh.
type acceptor struct {
	path        string
	trustDomain string
	judged      map[resource.Key]judgement
	good        map[resource.Key]*resource.Object
	// spare are versions from an earlier run whose file could not be read since.
	spare   map[resource.Key]*resource.Object
	written map[resource.Key]*resource.Object
}

// judgement is what validation said about one version of an object.
type judgement struct {
	object   *resource.Object
	findings []finding.Finding
	refused  bool
}

// keptObject is one accepted object on disk.
type keptObject struct {
	Source string          `json:"source"`
	Object json.RawMessage `json:"object"`
}

// openAcceptor reads the versions that an earlier run accepted.
func openAcceptor(path, trustDomain string) (*acceptor, error) {
	a := &acceptor{
		path: path, trustDomain: trustDomain,
		judged: make(map[resource.Key]judgement), good: make(map[resource.Key]*resource.Object), spare: make(map[resource.Key]*resource.Object),
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read last good objects: %w", err)
	}
	var kept []keptObject
	if err := json.Unmarshal(data, &kept); err != nil {
		return nil, fmt.Errorf("read last good objects: %s: %w: remove it to start from the manifests alone", path, err)
	}
	for _, k := range kept {
		// An object that this version refuses is not good any more.
		if o, findings := resource.DecodeJSON(k.Source, k.Object); o != nil && !validate.Refused(findings) {
			a.spare[o.Key] = o
		}
	}
	return a, nil
}

// accept returns the objects in force and everything there is to say about the
// candidates. broken are the files that could not be read or parsed.
func (a *acceptor) accept(candidates []*resource.Object, broken map[string]bool) (map[resource.Key]*resource.Object, []finding.Finding) {
	force := make(map[resource.Key]*resource.Object, len(candidates))
	judged := make(map[resource.Key]judgement, len(candidates))
	good := make(map[resource.Key]*resource.Object, len(candidates))
	var findings []finding.Finding
	for _, o := range candidates {
		j := a.judged[o.Key]
		if j.object != o {
			j = a.judge(o)
		}
		judged[o.Key] = j
		findings = append(findings, j.findings...)
		switch {
		case !j.refused:
			good[o.Key] = o
		case a.good[o.Key] != nil:
			good[o.Key] = a.good[o.Key]
		case a.spare[o.Key] != nil:
			good[o.Key] = a.spare[o.Key]
		default:
			continue
		}
		force[o.Key] = good[o.Key]
	}
	for key, o := range a.spare {
		if judged[key].object == nil && broken[o.Source] {
			force[key], good[key] = o, o
			continue
		}
		if !broken[o.Source] && (judged[key].object == nil || !judged[key].refused) {
			delete(a.spare, key)
		}
	}
	a.judged, a.good = judged, good
	return force, findings
}

func (a *acceptor) judge(o *resource.Object) judgement {
	fs := validate.Object(o)
	if f, bad := a.checkTrustDomain(o); bad {
		fs = append(fs, f)
	}
	return judgement{object: o, findings: fs, refused: validate.Refused(fs)}
}

// checkTrustDomain refuses a mesh configuration whose trust domain is not the
// one certificates are issued in.
func (a *acceptor) checkTrustDomain(o *resource.Object) (finding.Finding, bool) {
	if !resource.IsMeshConfig(o, rootNamespace) {
		return finding.Finding{}, false
	}
	mc, _ := resource.MeshConfig(o)
	if td := mc.GetTrustDomain(); td == "" || td == a.trustDomain {
		return finding.Finding{}, false
	}
	return finding.Newf(finding.TrustDomainFixed, o.Object(), resource.MeshConfigPath, o.Pos(resource.MeshConfigPath),
		"trust domain %q differs from %q, in which this mesh issues certificates", mc.GetTrustDomain(), a.trustDomain).
		WithHint("restart with this trust domain and a new data directory, or change it back"), true
}

// save writes the configured objects in force, if they differ from what was
// last written.
func (a *acceptor) save(force map[resource.Key]*resource.Object) error {
	if maps.Equal(force, a.written) {
		return nil
	}
	kept := make([]keptObject, 0, len(force))
	for _, key := range slices.SortedFunc(maps.Keys(force), compareKeys) {
		o := force[key]
		data, err := o.JSON()
		if err != nil {
			return fmt.Errorf("write last good objects: %w", err)
		}
		kept = append(kept, keptObject{Source: o.Source, Object: data})
	}
	data, err := json.Marshal(kept)
	if err != nil {
		return fmt.Errorf("write last good objects: %w", err)
	}
	if err := disk.WriteFile(a.path, data, 0o600); err != nil {
		return err
	}
	a.written = maps.Clone(force)
	return nil
}

// brokenFiles lists the files that findings of reading and parsing are about.
func brokenFiles(findings []finding.Finding) map[string]bool {
	out := make(map[string]bool)
	for _, f := range findings {
		if f.Severity == finding.Error && f.Code != finding.DuplicateObject {
			out[f.Pos.File] = true
		}
	}
	return out
}
