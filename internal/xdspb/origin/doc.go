// Package origin is the wire form of Lateen's origin table, which joins stable
// origin ids to file:line apart from the resources that carry them. It is
// generated from origin.proto by `make generate`.
package origin
