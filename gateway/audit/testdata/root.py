"""Prints the Merkle tree hash (RFC 6962 2.1) over the lines of standard input, in base64: a second opinion."""
import base64
import hashlib
import sys


def leaf(data):
    return hashlib.sha256(b"\x00" + data).digest()


def tree(leaves):
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree(leaves[:k]) + tree(leaves[k:])).digest()


print(base64.b64encode(tree([leaf(line) for line in sys.stdin.buffer.read().split(b"\n") if line])).decode())
