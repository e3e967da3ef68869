#!/usr/bin/env bash
# Runs every fuzz target of the tree for FUZZTIME each (default 5s).
set -euo pipefail
go=${GO:-go}
grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -r -n1 dirname | sort -u | while read -r dir; do
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | sed 's/^func //'); do
    echo "fuzz $dir $target"
    "$go" test "$dir" -run '^$' -fuzz "^${target}\$" -fuzztime "${FUZZTIME:-5s}" -parallel 2 >/tmp/fuzz.$$ 2>&1 || { cat /tmp/fuzz.$$; rm -f /tmp/fuzz.$$; exit 1; }
  done
done
rm -f /tmp/fuzz.$$
