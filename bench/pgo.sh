#!/usr/bin/env bash
# Makes cmd/lateen-proxy/default.pgo: where the CPU time of a busy proxy goes.
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
go build -o "$tmp/h1" ./bench/h1
go build -pgo=off -o "$tmp/lateen-proxy" ./cmd/lateen-proxy # with symbols, and not shaped by the last profile
for conns in 64 512; do
  timeout 120 setsid -w "$tmp/h1" -proxy "$tmp/lateen-proxy" -only lateen-proxy -conns "$conns" -rounds 8 -slice 2s -cpuprofile "$tmp/$conns.prof"
done
go tool pprof -proto "$tmp"/*.prof >"$tmp/sum"
mv "$tmp/sum" cmd/lateen-proxy/default.pgo
