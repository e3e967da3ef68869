// Package deps keeps the libraries that the design has chosen and that no code
// uses yet in go.mod, so that the whole set is known to resolve, link and stay
// tidy together. It is imported by nothing. Delete a line when real code imports
// the library.
package deps

import (
	_ "cel.dev/cel-go/cel"
	_ "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	_ "github.com/go-jose/go-jose/v4"
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/prometheus/prometheus/promql"
	_ "github.com/prometheus/prometheus/scrape"
	_ "github.com/prometheus/prometheus/tsdb"
	_ "github.com/tetratelabs/wazero"
	_ "k8s.io/client-go/kubernetes"
	_ "pgregory.net/rapid"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)
