#!/usr/bin/env bash
# Measures Lateen against its targets and writes bench/results/DATE-*.md; see
# bench/README.md. Usage: bash bench/run.sh [h1|mesh ...], all by default.
set -euo pipefail
cd "$(dirname "$0")/.."
what=("$@"); [ ${#what[@]} -gt 0 ] || what=(h1 mesh)
for name in "${what[@]}"; do
  if [ "$name" = h1 ] && ! command -v nginx >/dev/null; then
    echo "bench h1 compares with nginx, which is not in PATH; install it, for example: apt-get install nginx-core" >&2
    exit 1
  fi
done
mkdir -p bench/results
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
machine() {
  echo "- machine: $(nproc) CPUs, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(awk '/^MemTotal/{printf "%.0f GiB", $2/1048576}' /proc/meminfo), $(uname -sr)"
  echo "- commit: $(git describe --tags --always --dirty), $(go version | cut -d' ' -f3)$(nginx -v 2>&1 | sed -n 's/^nginx version: /, /p')"
  echo "- load before: $(cut -d' ' -f1-3 /proc/loadavg)"
}
for name in "${what[@]}"; do
  go build -o "$tmp/$name" "./bench/$name"
  args=(); [ "$name" != h1 ] || args=(-conns 64,512)
  out=bench/results/$(date -u +%Y-%m-%d)-$name.md
  { echo "# $name, $(date -u '+%Y-%m-%d %H:%M') UTC"; echo; machine; echo; } >"$tmp/out"
  # A session of its own: its weight can then be raised apart from the terminal's.
  timeout 900 setsid -w "$tmp/$name" "${args[@]}" | tee -a "$tmp/out"
  mv "$tmp/out" "$out"
  echo "written to $out"
done
