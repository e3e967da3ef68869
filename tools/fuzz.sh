#!/usr/bin/env bash
# Runs every fuzz target of the tree for FUZZTIME each (default 5s). Inputs are
# not minimized: a smoke run should spend its time on trying.
set -euo pipefail
go=${GO:-go}
out=$(mktemp)
trap 'rm -f "$out"' EXIT
smoke() { # DIR TARGET
  timeout 120 "$go" test "$1" -run '^$' -fuzz "^$2\$" -fuzztime "${FUZZTIME:-5s}" -fuzzminimizetime 1x -parallel 2 >"$out" 2>&1
}

for dir in $(grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -r -n1 dirname | sort -u); do
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | sed 's/^func //'); do
    printf 'fuzz %-40s %s\n' "$dir" "$target"
    code=0
    smoke "$dir" "$target" || code=$?
    if [ "$code" = 124 ]; then # the coordinator of go test stalls now and then; a second stall is ours
      echo "fuzz: stalled, once more"
      code=0
      smoke "$dir" "$target" || code=$?
    fi
    [ "$code" = 0 ] || { cat "$out"; echo "fuzz: $dir $target failed with code $code"; exit 1; }
  done
done
