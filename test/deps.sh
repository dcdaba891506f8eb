#!/usr/bin/env bash
# Installs what the demo and the tests need, where it is missing: Go modules and Debian packages (as root). Prints nothing
# when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

packages="samba samba-ad-provision samba-dsdb-modules python3-samba krb5-user ldap-utils openssl iproute2 util-linux
          curl ca-certificates python3-gssapi gcc libc6-dev strace postgresql
          smbclient python3-impacket tshark
          krb5-kdc krb5-admin-server softhsm2 opensc libnss3-tools gpgsm gpg-agent age default-jre-headless prometheus"

# Debian's Go fetches the version that go.mod asks for by itself, if it is 1.21 or newer.
command -v go >/dev/null || packages="$packages golang-go"

# shellcheck disable=SC2086  # a list of words
if ! dpkg -s $packages >/dev/null 2>&1; then
  if [ "$(id -u)" != 0 ]; then
    echo "Some Debian packages are missing. Run once as root: apt-get install" $packages
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -yq --no-install-recommends $packages
fi

go version >/dev/null || { echo "Go cannot be used: install version $(sed -n 's/^go //p' go.mod) or newer"; exit 1; }

# The lab has no network: every module must be here before.
go mod download
