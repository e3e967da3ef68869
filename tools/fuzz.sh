#!/usr/bin/env bash
# Runs every fuzz target of the tree for FUZZTIME each (default 2000x: a count has
# no deadline to trip over). Inputs are
# not minimized: a smoke run should spend its time on trying.
set -euo pipefail
go=${GO:-go}
out=$(mktemp)
trap 'rm -f "$out"' EXIT
smoke() { # DIR TARGET
  timeout 120 "$go" test "$1" -run '^$' -fuzz "^$2\$" -fuzztime "${FUZZTIME:-2000x}" -fuzzminimizetime 1x -parallel 2 >"$out" 2>&1
}

for dir in $(grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -r -n1 dirname | sort -u); do
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | sed 's/^func //'); do
    printf 'fuzz %-40s %s\n' "$dir" "$target"
    code=0
    smoke "$dir" "$target" || code=$?
    # The coordinator of go test stalls, or takes its own deadline for a failure,
    # now and then. Without a failing input it gets a second try; then it is ours.
    if [ "$code" != 0 ] && ! grep -q 'Failing input' "$out"; then
      echo "fuzz: ended with code $code and no failing input, once more"
      code=0
      smoke "$dir" "$target" || code=$?
    fi
    [ "$code" = 0 ] || { cat "$out"; echo "fuzz: $dir $target failed with code $code"; exit 1; }
  done
done
