#!/usr/bin/env bash
# Builds a CA server for tests from what is in the folder $1 beside this file, once per version, and prints where it is: a module of our own,
# or the package of somebody else's that the file "package" names. The lab has no network: run it before. With -n it builds nothing and
# fails where the server is missing.
set -euo pipefail
export PATH="$PATH:/usr/local/go/bin"

source=$(cd "$(dirname "$0")/$1" && pwd)
version=$(cd "$source" && cat -- * | sha256sum | cut -c1-12)
dir="${XDG_CACHE_HOME:-$HOME/.cache}/enrollgate/bin"
binary="$dir/$1-$version"
if [ ! -x "$binary" ]; then
  [ "${2:-}" != -n ] || exit 1
  mkdir -p "$dir"
  temporary=$(mktemp -d "$dir/new.XXXXXX")
  trap 'rm -rf "$temporary"' EXIT
  if [ -e "$source/package" ]; then
    GOBIN="$temporary" CGO_ENABLED=0 go install "$(cat "$source/package")" 1>&2
  else
    (cd "$source" && CGO_ENABLED=0 go build -o "$temporary/server" .) 1>&2
  fi
  mv "$temporary"/* "$binary"
fi
echo "$binary"
