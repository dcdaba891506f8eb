#!/usr/bin/env bash
# All tests with the race detector: first what needs no domain controller, then the rest inside the lab, with its second forest, one package after
# the other, because they change the same accounts. Arguments go to go test.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=1

inside='^github.com/enrollgate/enrollgate/(ldapsync|gateway/kerberos|gateway/soap|test/e2e|test/kill|test/stepca|test/certipy)$'
packages=$(go list ./...)
go vet ./...
# shellcheck disable=SC2046  # lists of packages
go test -race -timeout 15m "$@" $(grep -vE "$inside" <<<"$packages")
# shellcheck disable=SC2046
LAB_FOREIGN=yes exec test/lab/lab.sh ns go test -race -count=1 -p 1 -timeout 15m "$@" $(grep -E "$inside" <<<"$packages")
