"""Writes the CNG private key blobs of bcrypt.h for a PEM key, which OpenSSL takes apart: bcryptblob.py FORM < KEY.

FORM is RSA2 (BCRYPT_RSAPRIVATE_BLOB), RSA3 (BCRYPT_RSAFULLPRIVATE_BLOB), or the magic of a BCRYPT_ECCKEY_BLOB.
"""
import re
import struct
import subprocess
import sys

form, pem = sys.argv[1], sys.stdin.buffer.read()
text = subprocess.run(["openssl", "pkey", "-text", "-noout"], input=pem, capture_output=True, check=True).stdout.decode()


def octets(name):
    """What OpenSSL prints in lines of hexadecimal under a heading."""
    lines = re.search(r"^%s:\s*\n((?: +[0-9a-f:]+\n)+)" % name, text, re.M).group(1)
    return bytes.fromhex(re.sub(r"[\s:]", "", lines))


def number(name, size):
    return octets(name).lstrip(b"\0").rjust(size, b"\0")


bits = int(re.search(r"Private-Key: \((\d+) bit", text).group(1))
size = (bits + 7) // 8
if form.startswith("RSA"):
    e = int(re.search(r"publicExponent: (\d+)", text).group(1))
    exponent, half = e.to_bytes((e.bit_length() + 7) // 8, "big"), (size + 1) // 2
    blob = form.encode() + struct.pack("<5I", bits, len(exponent), size, half, half) + exponent + number("modulus", size)
    blob += number("prime1", half) + number("prime2", half)
    if form == "RSA3":
        blob += number("exponent1", half) + number("exponent2", half) + number("coefficient", half)
        blob += number("privateExponent", size)
else:
    point = octets("pub")
    assert point[0] == 4 and len(point) == 1 + 2 * size  # uncompressed
    blob = form.encode() + struct.pack("<I", size) + point[1:] + number("priv", size)
sys.stdout.buffer.write(blob)
