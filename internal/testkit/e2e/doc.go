// Package e2e tests the programs as a user meets them: it builds both, runs
// `lateen up` as an ordinary user on folders of manifests, and looks at traffic,
// traces and configuration through the command line. It needs user namespaces;
// where the machine refuses them it skips with the reason, in CI it fails.
//
// It holds tests only. What a single scenario can say is said under scenarios/.
package e2e
