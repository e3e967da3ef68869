// Package repocheck holds tests about the repository itself: who may import
// whom, what stays pure, how long things may be, and that every dependency has
// its reason. The rules are those of ARCHITECTURE.md; allow.txt lists the
// exceptions, each with its reason, and is meant to shrink.
package repocheck
