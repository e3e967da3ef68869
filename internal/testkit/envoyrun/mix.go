package envoyrun

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Mix says which pods of a mesh have an Envoy; the others have a lateen-proxy.
type Mix struct {
	// Accounts are service accounts, and Have says whether it is theirs or all
	// other pods that have an Envoy. The zero value means all pods.
	Accounts []string
	Have     bool
}

// Callers and Callees are the pods that most scenarios call from, and all but
// those.
func Callers() Mix { return Mix{Accounts: []string{"web", "istio-ingressgateway"}, Have: true} }

// Callees is the other half of Callers.
func Callees() Mix { return Mix{Accounts: Callers().Accounts} }

// Has says whether the pods of a service account have an Envoy.
func (m Mix) Has(account string) bool { return slices.Contains(m.Accounts, account) == m.Have }

// mixFile is where the programs of a suite find its mix, beside them.
const mixFile = "mix.json"

// Write puts the mix beside the programs in dir, where ReadMix finds it.
func (m Mix) Write(dir string) error {
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the mix: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, mixFile), data, 0o644)
}

// ReadMix reads the mix of the suite whose programs are in dir.
func ReadMix(dir string) (Mix, error) {
	var m Mix
	data, err := os.ReadFile(filepath.Join(dir, mixFile))
	if err != nil {
		return m, fmt.Errorf("read the mix: %w", err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("read the mix: %w", err)
	}
	return m, nil
}
