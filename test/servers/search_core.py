#!/usr/bin/env python3
"""Searches a core for secrets.

    search_core.py CORE <REQUEST

REQUEST is one line of JSON: `secrets`, an object of names and bytes in hex, and optionally `patterns`, a list of regular
expressions. Prints one line of JSON: `found`, an object of the names that were found, each with the forms that it has
there; `matches`, what the patterns match; `bytes`, the size of the core.

A secret is looked for as it is, in hex, in base64 and base64url wherever it begins in the text that was encoded, and
URL-encoded. The allocator writes over the beginning of what is freed, so of a secret of 24 bytes and more the middle and
the end are enough.
"""
import base64
import json
import mmap
import re
import sys
import urllib.parse

PAGE = 4096
PIECE = 16


def pieces(secret):
    if len(secret) < PIECE + 8:
        return [secret]
    middle = (len(secret) - PIECE) // 2
    return [secret[middle:middle + PIECE], secret[-PIECE:]]


def forms(secret):
    for piece in pieces(secret):
        yield "raw", piece
        yield "hex", piece.hex().encode()
        yield "hex", piece.hex().upper().encode()
        for shift in range(3):
            # without the characters that depend on what is before and after
            text = base64.b64encode(bytes(shift) + piece)
            first = -(-shift * 8 // 6)
            last = (shift + len(piece)) * 8 // 6
            yield f"base64+{shift}", text[first:last]
            yield f"base64+{shift}", text[first:last].translate(bytes.maketrans(b"+/", b"-_"))
        encoded = urllib.parse.quote_from_bytes(piece, safe="").encode()
        if encoded != piece:
            yield "url", encoded


def contents(path):
    """The core, each run of zeroed pages as one."""
    kept, zero = [], bytes(PAGE)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as core:
        size, was_zero = len(core), False
        for at in range(0, size, PAGE):
            page = core[at:at + PAGE]
            is_zero = page == zero
            if not (is_zero and was_zero):
                kept.append(page)
            was_zero = is_zero
    return b"".join(kept), size


def main():
    request = json.loads(sys.stdin.readline())
    core, size = contents(sys.argv[1])
    found = {}
    for name, secret in request["secrets"].items():
        those = sorted({form for form, text in forms(bytes.fromhex(secret)) if text in core})
        if those:
            found[name] = those
    matches = sorted({match.group().decode() for pattern in request.get("patterns", [])
                      for match in re.finditer(pattern.encode(), core)})
    print(json.dumps({"found": found, "matches": matches, "bytes": size}))


main()
