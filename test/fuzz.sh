#!/usr/bin/env bash
# Runs every fuzz target for a while: FUZZTIME each (default 5s). A finding ends it and leaves its input in testdata/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0

git grep -lE '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u | while read -r dir; do
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9]+' "$dir"/*_test.go | sed 's/^func //'); do
    printf '%-24s %-22s ' "$dir" "$target"
    # Now and then a worker is still busy when the time is up: that is no finding.
    out=$(go test "./$dir" -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-5s}" -fuzzminimizetime 10x -parallel 2 2>&1) ||
      { grep -q 'context deadline exceeded' <<<"$out" && ! grep -q 'Failing input' <<<"$out"; } ||
      { echo "FAILED"; echo "$out"; exit 1; }
    grep -oE 'execs: [0-9]+' <<<"$out" | tail -n 1 || echo "known inputs only: there was no time for others"
  done
done
