#!/usr/bin/env bash
# All tests: what needs no domain controller, and beside it the rest inside the lab, with its second forest, one package after the
# other, because they change the same accounts. The race detector watches all but test/e2e, most of which drives processes, and of
# that the tests in which much happens at a time. Arguments go to go test.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=1 GOEXPERIMENT=runtimesecret

test/upstreams/all.sh

inside='^github.com/enrollgate/enrollgate/(ldapsync|gateway/kerberos|gateway/soap|test/kill|test/stepca|test/certipy|test/rpc)$'
e2e=github.com/enrollgate/enrollgate/test/e2e
busy='AtOnce|Once|AStop|EachRole|EachAgent|Renew|SecondInstance|Published|Together|Twice'
packages=$(go list ./...)
go vet ./...

# What needs no domain controller runs beside the lab, whose tests wait more than they work; it is printed at the end.
printed=$(mktemp)
trap 'rm -f "$printed"' EXIT
# shellcheck disable=SC2046  # lists of packages
go test -race -timeout 20m "$@" $(grep -vE "$inside|/test/e2e\$" <<<"$packages") >"$printed" 2>&1 &
beside=$!
status=0
# shellcheck disable=SC2046
LAB_FOREIGN=yes test/lab/lab.sh ns sh -c 'go test -race -count=1 -p 1 -timeout 15m "$@" &&
  go test -race -count=1 -timeout 15m -run "$0" '"$e2e"' && go test -count=1 -timeout 15m -skip "$0" '"$e2e" "$busy" "$@" $(grep -E "$inside" <<<"$packages") || status=$?
wait "$beside" || status=$?
cat "$printed"
exit "$status"
