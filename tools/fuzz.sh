#!/usr/bin/env bash
# Runs every fuzz target of the tree for FUZZTIME each (default 5s). Inputs are
# not minimized: a smoke run should spend its time on trying.
set -euo pipefail
go=${GO:-go}
out=$(mktemp)
trap 'rm -f "$out"' EXIT
for dir in $(grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -r -n1 dirname | sort -u); do
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | sed 's/^func //'); do
    printf 'fuzz %-40s %s\n' "$dir" "$target"
    timeout 300 "$go" test "$dir" -run '^$' -fuzz "^${target}\$" -fuzztime "${FUZZTIME:-5s}" -fuzzminimizetime 1x -parallel 2 >"$out" 2>&1 ||
      { cat "$out"; echo "fuzz: $dir $target failed"; exit 1; }
  done
done
