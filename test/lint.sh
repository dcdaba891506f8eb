#!/usr/bin/env bash
# Formatting, go vet, staticcheck, go mod tidy; govulncheck where its database can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."

bad=$(gofmt -l $(git ls-files '*.go'))
[ -z "$bad" ] || { echo "gofmt would change:" $bad; exit 1; }
go vet ./...
go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
for module in test/upstreams/*/go.mod; do
  (cd "$(dirname "$module")" && go vet ./... && go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...)
done
before=$(cat go.mod go.sum | sha256sum)
go mod tidy
[ "$before" = "$(cat go.mod go.sum | sha256sum)" ] || { echo "go mod tidy changes go.mod or go.sum"; exit 1; }
if ! out=$(go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./... 2>&1); then
  # Only a database that cannot be reached is forgiven.
  grep -qE 'dial tcp|no such host|connection refused|status 40[0-9]|status 5[0-9][0-9]|timeout|Forbidden' <<<"$out" || { echo "$out"; exit 1; }
  echo "govulncheck: skipped, its database cannot be reached"
fi
echo "lint: ok"
