#!/usr/bin/python3
"""Run `certipy req` (github.com/ly4k/Certipy) from a source folder: certipy.py FOLDER ARGUMENTS…

As test/certipy/find.py it gives Certipy the names of types that Debian 12's libraries lack."""
import sys
import typing

from cryptography.hazmat.primitives.asymmetric import types as key_types

for name in ("PrivateKeyTypes", "PublicKeyTypes", "CertificateIssuerPrivateKeyTypes",
             "CertificateIssuerPublicKeyTypes", "CertificatePublicKeyTypes"):
    if not hasattr(key_types, name):
        setattr(key_types, name, typing.Any)
if not hasattr(typing, "override"):
    typing.override = lambda f: f


def main():
    sys.path.insert(0, sys.argv[1])
    sys.argv[1:2] = ["req"]
    from certipy.entry import main as certipy
    certipy()


if __name__ == "__main__":
    main()
