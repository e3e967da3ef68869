#!/usr/bin/env bash
# Measures Lateen against its targets and writes bench/results; see
# bench/README.md. Usage: bash bench/run.sh [perf|mesh ...], all by default.
set -euo pipefail
cd "$(dirname "$0")/.."
what=("$@"); [ ${#what[@]} -gt 0 ] || what=(perf mesh)
mkdir -p bench/results
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
machine() {
  echo "- machine: $(nproc) CPUs, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(awk '/^MemTotal/{printf "%.0f GiB", $2/1048576}' /proc/meminfo), $(uname -sr)"
  echo "- commit: $(git describe --tags --always --dirty), $(go version | cut -d' ' -f3)"
  echo "- load before: $(cut -d' ' -f1-3 /proc/loadavg)"
}
for name in "${what[@]}"; do
  if [ "$name" = perf ]; then
    timeout 3600 go run ./bench/perf
    continue
  fi
  go build -o "$tmp/$name" "./bench/$name"
  out=bench/results/$(date -u +%Y-%m-%d)-$name.md
  { echo "# $name, $(date -u '+%Y-%m-%d %H:%M') UTC"; echo; machine; echo; } >"$tmp/out"
  # A session of its own: its weight can then be raised apart from the terminal's.
  timeout 900 setsid -w "$tmp/$name" | tee -a "$tmp/out"
  mv "$tmp/out" "$out"
  echo "written to $out"
done
