// Package version tells which build this is.
package version

// Version is set by the linker; "dev" in an unreleased build.
var Version = "dev"
