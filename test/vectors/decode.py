#!/usr/bin/env python3
"""Decodes stored values of envcrypt, format 1 (doc/format.md), given their data key.

    decode.py --dek HEX [--associated-data TEXT] < lines of ec1:... or \\x...

prints one JSON object for each line: the fields of the header and the plaintext, or `fault` and what
could be read before it. Ends with 1 if any line had a fault. A key on a command line is seen by
every user of the machine: `--dek-file PATH` reads the hex digits from a file instead.

Needs the standard library and python3-cryptography. It never talks to a database or a KMS.
"""

import argparse
import base64
import binascii
import dataclasses
import hashlib
import hmac
import json
import re
import sys
from typing import Optional

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TYPES = {1: "text", 2: "bytea", 3: "boolean", 4: "int2", 5: "int4", 6: "int8", 7: "float8",
         8: "numeric", 9: "date", 10: "timestamp", 11: "timestamptz", 12: "interval", 13: "uuid",
         14: "inet", 15: "jsonb", 16: "text[]"}
MODES = {1: "exact", 2: "nocase", 3: "digits"}
SEARCHABLE = {"text", "bytea", "int2", "int4", "int8", "numeric", "date", "timestamp",
              "timestamptz", "uuid", "inet"}
MAX_PLAINTEXT = 500 * 1024 * 1024


class Fault(Exception):
    """A value that must be refused; `name` is one of the names in doc/format.md."""

    def __init__(self, name):
        super().__init__(name)
        self.name = name


@dataclasses.dataclass(frozen=True)
class Value:
    type: str
    key_id: int
    label: Optional[str]
    search_mode: Optional[str]
    search_version: Optional[int]
    token: Optional[bytes]
    bound: bool
    salt: bytes
    nonce: bytes
    authenticated: bytes  # every byte before the ciphertext
    sealed: bytes         # ciphertext and tag

    def fields(self):
        return {"format": 1, "algorithm": 1, "type": self.type, "key_id": "%016x" % self.key_id,
                "label": self.label, "search_mode": self.search_mode,
                "search_version": self.search_version,
                "token": None if self.token is None else self.token.hex(), "bound": self.bound,
                "salt": self.salt.hex(), "nonce": self.nonce.hex()}


def from_text(text):
    """The bytes of a text form, `ec1:` and base64 in its one canonical spelling."""
    if not text.startswith("ec1:"):
        raise Fault("not_text")
    try:
        letters = text[4:].encode("ascii")
        data = base64.b64decode(letters, validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise Fault("not_text") from None
    if base64.b64encode(data) != letters:
        raise Fault("not_text")
    return data


def from_line(line):
    """The bytes of one line: a text form, or what PostgreSQL prints for them as bytea."""
    if re.fullmatch(r"\\x(?:[0-9a-fA-F]{2})*", line, re.ASCII):
        return bytes.fromhex(line[2:])
    return from_text(line)


def decode_label(data):
    number = int.from_bytes(data, "big")
    places = []
    for _ in range(5):
        number, place = divmod(number, 27)
        places.insert(0, place)
    letters = "".join(chr(96 + place) for place in places if place)
    if number or not letters or any(places[len(letters):]):
        raise Fault("bad_label")
    return letters


def encode_label(letters):
    if not re.fullmatch("[a-z]{1,5}", letters, re.ASCII):
        raise ValueError("a label is one to five letters a-z")
    number = 0
    for letter in letters.ljust(5, "`"):
        number = number * 27 + ord(letter) - 96
    return number.to_bytes(3, "big")


def parse(data):
    """Takes a value apart; raises Fault where it is not exactly one."""
    if not data:
        raise Fault("too_short")
    if data[0] >> 4 != 1:
        raise Fault("unknown_format")
    if data[0] & 15 != 1:
        raise Fault("unknown_algorithm")
    if len(data) < 42:
        raise Fault("too_short")
    has_label, has_token, bound = (bool(data[1] >> bit & 1) for bit in (5, 6, 7))
    type_name = TYPES.get(data[1] & 31)
    if type_name is None:
        raise Fault("unknown_type")
    label = mode = version = token = None
    at = 10
    if has_label:
        if len(data) < 45:
            raise Fault("too_short")
        label = decode_label(data[10:13])
        at = 13
    elif has_token:
        raise Fault("token_without_label")
    if has_token:
        if len(data) < 62:
            raise Fault("too_short")
        mode = MODES.get(data[13] >> 6)
        version = data[13] & 63
        if mode is None or type_name not in SEARCHABLE or (mode != "exact" and type_name != "text"):
            raise Fault("bad_search_mode")
        if version == 0:
            raise Fault("bad_search_version")
        token = data[14:30]
        at = 30
    if len(data) - at - 32 > MAX_PLAINTEXT:
        raise Fault("too_long")
    return Value(type=type_name, key_id=int.from_bytes(data[2:10], "big"), label=label,
                 search_mode=mode, search_version=version, token=token, bound=bound,
                 salt=data[at:at + 4], nonce=data[at + 4:at + 16], authenticated=data[:at + 16],
                 sealed=data[at + 16:])


def kdf(key, label, context):
    """NIST SP 800-108r1, counter mode with HMAC-SHA-256, one block."""
    fixed = label.encode("ascii") + b"\x00" + context + b"\x00\x00\x01\x00"
    return hmac.new(key, b"\x00\x00\x00\x01" + fixed, hashlib.sha256).digest()


def open_value(value, dek, associated_data=None):
    """The plaintext bytes. `associated_data` is text, its UTF-8 bytes, or None; empty is none."""
    if isinstance(associated_data, str):
        associated_data = associated_data.encode("utf-8")
    if value.bound and not associated_data:
        raise Fault("associated_data_missing")
    if associated_data and not value.bound:
        raise Fault("associated_data_unexpected")
    if len(dek) != 32:
        raise ValueError("a data key has 32 bytes")
    subkey = kdf(dek, "envcrypt1 gcm", value.salt)
    try:
        return AESGCM(subkey).decrypt(value.nonce, value.sealed,
                                      value.authenticated + (associated_data or b""))
    except InvalidTag:
        raise Fault("tag") from None


def decode_plaintext(type_name, plaintext):
    """What JSON shows: text as a string, all else as the hex digits of the send format."""
    if type_name != "text":
        return plaintext.hex()
    try:
        text = plaintext.decode("utf-8")
    except UnicodeDecodeError:
        raise Fault("bad_plaintext") from None
    if "\x00" in text:
        raise Fault("bad_plaintext")
    return text


def decode(line, dek, associated_data=None):
    """One line to one dict; a fault is an entry of it, never an exception."""
    found = {}
    try:
        value = parse(from_line(line))
        found = value.fields()
        plaintext = open_value(value, dek, associated_data)
        found["plaintext"] = decode_plaintext(value.type, plaintext)
    except Fault as fault:
        found["fault"] = fault.name
    return found


# What else doc/format.md derives: for whoever holds a master, group or search key.

def wrap_context(purpose, key_id, tenant):
    """C: what a wrapped key is bound to."""
    parts = [b"envcrypt1", purpose.encode("ascii"), b"%016x" % key_id, tenant.encode("utf-8")]
    return b"\x00".join(parts)


def commitment(key, context):
    return kdf(key, "envcrypt1 commit", context)


def search_token(search_key, label, type_name, mode, canonical):
    number = next(n for n, name in TYPES.items() if name == type_name)
    mode_number = next(n for n, name in MODES.items() if name == mode)
    data = encode_label(label) + bytes([number, mode_number]) + canonical
    return hmac.new(kdf(search_key, "envcrypt1 token", b""), data, hashlib.sha256).digest()[:16]


def canonical_text(plaintext, mode):
    """The canonical bytes of a text for each search mode."""
    if mode == "nocase":
        return bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in plaintext)
    if mode == "digits":
        return bytes(byte for byte in plaintext if 48 <= byte <= 57)
    return plaintext


def local_id(master):
    return kdf(master, "envcrypt1 local-id", b"")[:8]


def _unwrap(key, label, salt, sealed, context):
    try:
        return AESGCM(kdf(key, label, salt)).decrypt(bytes(12), sealed, context)
    except InvalidTag:
        raise Fault("tag") from None


def group_unwrap(group_key, wrapped, context):
    if len(wrapped) != 65 or wrapped[0] != 1:
        raise Fault("not_wrapped")
    return _unwrap(group_key, "envcrypt1 wrap", wrapped[1:17], wrapped[17:], context)


def local_unwrap(master, wrapped, context):
    if len(wrapped) != 73 or wrapped[0] != 1:
        raise Fault("not_wrapped")
    if wrapped[1:9] != local_id(master):
        raise Fault("other_master_key")
    return _unwrap(master, "envcrypt1 local", wrapped[9:25], wrapped[25:], context)


def main():
    arguments = argparse.ArgumentParser(description="Decodes stored values of envcrypt.")
    key = arguments.add_mutually_exclusive_group(required=True)
    key.add_argument("--dek", metavar="HEX", help="the data key, 64 hex digits")
    key.add_argument("--dek-file", metavar="PATH", help="a file that holds the 64 hex digits")
    arguments.add_argument("--associated-data", metavar="TEXT")
    given = arguments.parse_args()
    digits = given.dek
    if given.dek_file is not None:
        with open(given.dek_file, encoding="ascii") as file:
            digits = file.read().rstrip("\n")
    if not re.fullmatch("[0-9a-fA-F]{64}", digits, re.ASCII):
        arguments.error("a data key has 64 hex digits")
    dek = bytes.fromhex(digits)
    faults = False
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    for line in sys.stdin:
        found = decode(line.removesuffix("\n"), dek, given.associated_data)
        faults = faults or "fault" in found
        print(json.dumps(found))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
