#!/usr/bin/env bash
# Builds a CA, or as much of it as is a Go library, from a module of its own in this folder, once per change, and prints where it is:
# server.sh NAME. Tests have no network: run it before. With -n behind NAME it builds nothing and fails where the program is missing.
set -euo pipefail
cd "$(dirname "$0")/$1"

sum=$(cat go.mod go.sum ./*.go | sha256sum | cut -c1-12)
dir="${XDG_CACHE_HOME:-$HOME/.cache}/enrollgate/bin"
binary="$dir/$1-$sum"
if [ ! -x "$binary" ]; then
  [ "${2:-}" != -n ] || exit 1
  temporary=$(mktemp -d)
  trap 'rm -rf "$temporary"' EXIT
  CGO_ENABLED=0 go build -o "$temporary/server" . 1>&2
  mkdir -p "$dir"
  mv "$temporary/server" "$binary"
fi
echo "$binary"
