#!/usr/bin/env bash
# Builds a CA server for tests from the module in this folder that $1 names, once per version of its files, and prints where it is. The
# lab has no network: run it before. With -n it builds nothing and fails where the server is missing.
set -euo pipefail
export PATH="$PATH:/usr/local/go/bin"

source=$(cd "$(dirname "$0")/$1" && pwd)
version=$(cd "$source" && cat go.mod go.sum ./*.go | sha256sum | cut -c1-12)
dir="${XDG_CACHE_HOME:-$HOME/.cache}/enrollgate/bin"
binary="$dir/$1-$version"
if [ ! -x "$binary" ]; then
  [ "${2:-}" != -n ] || exit 1
  mkdir -p "$dir"
  (cd "$source" && CGO_ENABLED=0 go build -o "$binary.new" .) 1>&2
  mv "$binary.new" "$binary"
fi
echo "$binary"
