#!/usr/bin/python3
"""Run `certipy find` (github.com/ly4k/Certipy) from a source folder: find.py FOLDER ARGUMENTS…

Certipy wants newer libraries than Debian 12 has. What it lacks is only names of types, and a module that connects to
cloud services; find needs none of them, so they are given empty.
"""
import sys
import types
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
    sys.argv[1:2] = ["find"]
    from certipy.entry import main as certipy
    certipy()


if __name__ == "__main__":
    main()
