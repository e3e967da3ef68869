#!/usr/bin/env bash
# Makes cmd/lateen-proxy/default.pgo: where the CPU time of a busy proxy goes.
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
go build -o "$tmp/perf" ./bench/perf
go build -pgo=off -o "$tmp/lateen-proxy" ./cmd/lateen-proxy # with symbols, and not shaped by the last profile
for scenario in h1-mesh-c64 h1-plain-c512 chain-mtls-c64; do
  timeout 120 "$tmp/perf" -proxy "$tmp/lateen-proxy" -peers '' -scenarios "$scenario" -rounds 8 -slice 2s -out '' -cpuprofile "$tmp/$scenario.prof"
done
go tool pprof -proto "$tmp"/*.prof "$tmp"/*.prof.client >"$tmp/sum"
mv "$tmp/sum" cmd/lateen-proxy/default.pgo
