#!/usr/bin/env bash
# All tests, with the race detector, inside the lab: a real Samba AD domain controller in private namespaces.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=1
# Compile first: the lab has no network, and a compiler error should not wait for a domain controller.
go vet ./...
exec test/lab/lab.sh ns go test -race -timeout 15m "$@" ./...
