package envoycheck

import (
	"os"
	"path/filepath"
	"testing"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"lateen.dev/lateen/internal/control/translate"
)

// TestValidate_refusesWhatIsWrong: a check that nothing fails checks nothing.
func TestValidate_refusesWhatIsWrong(t *testing.T) {
	envoy, err := Find(t.Context())
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("skipped: %v", err)
	}
	for seconds, accepted := range map[int64]bool{1: true, -1: false} {
		var b Bootstrap
		c := &clusterpb.Cluster{Name: "a", ConnectTimeout: &durationpb.Duration{Seconds: seconds}}
		err := b.Add("test", &translate.Resources{ByType: map[string]map[string]proto.Message{translate.ClusterType: {"a": c}}})
		if err != nil {
			t.Fatal(err)
		}
		config, err := b.JSON()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "envoy.json")
		if err := os.WriteFile(path, config, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Validate(t.Context(), envoy, path); (err == nil) != accepted {
			t.Errorf("connect_timeout %d s: got %v, want accepted=%t", seconds, err, accepted)
		}
	}
}
