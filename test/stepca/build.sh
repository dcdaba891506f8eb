#!/usr/bin/env bash
# Builds step-ca from its Go module, once per version, and prints where it is. The lab has no network: run it before.
# With -n it builds nothing and fails where step-ca is missing.
set -euo pipefail

version=v0.30.2
dir="${XDG_CACHE_HOME:-$HOME/.cache}/enrollgate/bin"
binary="$dir/step-ca-$version"
if [ ! -x "$binary" ]; then
  [ "${1:-}" != -n ] || exit 1
  temporary=$(mktemp -d)
  trap 'rm -rf "$temporary"' EXIT
  GOBIN="$temporary" CGO_ENABLED=0 go install "github.com/smallstep/certificates/cmd/step-ca@$version" 1>&2
  mkdir -p "$dir"
  mv "$temporary/step-ca" "$binary"
fi
echo "$binary"
