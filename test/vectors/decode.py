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
import ipaddress
import json
import re
import struct
import sys
import uuid
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


class Reader:
    """Big-endian numbers from bytes, all of which must be used."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, size):
        if size < 0 or self.at + size > len(self.data):
            raise Fault("bad_plaintext")
        self.at += size
        return self.data[self.at - size:self.at]

    def number(self, size, signed=True):
        return int.from_bytes(self.take(size), "big", signed=signed)

    def end(self, result):
        if self.at != len(self.data):
            raise Fault("bad_plaintext")
        return result


def decode_text(data):
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Fault("bad_plaintext") from None
    if "\x00" in text:
        raise Fault("bad_plaintext")
    return text


def decode_boolean(data):
    if data not in (b"\x00", b"\x01"):
        raise Fault("bad_plaintext")
    return data == b"\x01"


def decode_integer(size):
    def decode_it(data):
        reader = Reader(data)
        return reader.end(reader.number(size))
    return decode_it


def decode_float8(data):
    if len(data) != 8:
        raise Fault("bad_plaintext")
    number = struct.unpack(">d", data)[0]
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(number)) or repr(number).removesuffix(".0")


def decode_numeric(data):
    """The exact decimal, with as many digits after the point as the display scale says."""
    reader = Reader(data)
    count, weight = reader.number(2, False), reader.number(2)
    sign, scale = reader.number(2, False), reader.number(2, False)
    digits = [reader.number(2, False) for _ in range(count)]
    reader.end(None)
    if sign in NUMERIC_SPECIAL:
        if count:
            raise Fault("bad_plaintext")
        return NUMERIC_SPECIAL[sign]
    if sign not in (0, 0x4000) or scale > 0x3FFF or any(digit > 9999 for digit in digits):
        raise Fault("bad_plaintext")
    whole = "".join("%04d" % (digits[i] if i < count else 0) for i in range(weight + 1)).lstrip("0") or "0"
    after = "".join("%04d" % (digits[i] if 0 <= i < count else 0)
                    for i in range(weight + 1, weight + 2 + scale // 4))[:scale]
    return ("-" if sign else "") + whole + ("." + after if scale else "")


def civil(days):
    """Year (0 is 1 BC), month and day of a day counted from 2000-01-01, proleptic Gregorian."""
    days += 730425  # days from 0000-03-01 to 2000-01-01
    era, day = divmod(days, 146097)
    year = (day - day // 1460 + day // 36524 - day // 146096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    return (era * 400 + year + (month >= 10), month + 3 if month < 10 else month - 9,
            day - (153 * month + 2) // 5 + 1)


def show_date(days, time=""):
    year, month, day = civil(days)
    return "%04d-%02d-%02d%s%s" % (year if year > 0 else 1 - year, month, day, time, "" if year > 0 else " BC")


def decode_date(data):
    reader = Reader(data)
    days = reader.end(reader.number(4))
    return {2**31 - 1: "infinity", -2**31: "-infinity"}.get(days) or show_date(days)


def decode_timestamp(zone):
    def decode_it(data):
        reader = Reader(data)
        moment = reader.end(reader.number(8))
        if moment in (2**63 - 1, -2**63):
            return "infinity" if moment > 0 else "-infinity"
        days, rest = divmod(moment, 86400 * 10**6)
        seconds, fraction = divmod(rest, 10**6)
        time = " %02d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)
        return show_date(days, time + (".%06d" % fraction).rstrip("0").rstrip(".") + zone)
    return decode_it


def decode_interval(data):
    reader = Reader(data)
    parts = [reader.number(8), reader.number(4), reader.number(4)]
    return reader.end(dict(zip(("microseconds", "days", "months"), parts)))


def decode_uuid(data):
    if len(data) != 16:
        raise Fault("bad_plaintext")
    return str(uuid.UUID(bytes=data))


def decode_inet(data):
    reader = Reader(data)
    family, bits, is_cidr, size = (reader.number(1, False) for _ in range(4))
    longest = {2: 32, 3: 128}.get(family)
    if longest is None or bits > longest or is_cidr != 0 or size * 8 != longest:
        raise Fault("bad_plaintext")
    address = ipaddress.ip_address(reader.end(reader.take(size)))
    return str(address) + ("" if bits == longest else "/%d" % bits)


def decode_jsonb(data):
    """The text as PostgreSQL prints it: numbers keep their digits, members their order."""
    if data[:1] != b"\x01":
        raise Fault("bad_plaintext")
    text = decode_text(data[1:])
    try:
        json.loads(text)
    except ValueError:
        raise Fault("bad_plaintext") from None
    return text


def decode_text_array(data):
    """Nested lists, NULL as None, with the lower bounds where they are not 1."""
    reader = Reader(data)
    dimensions, has_nulls, element = (reader.number(4) for _ in range(3))
    if not 0 <= dimensions <= 6 or has_nulls not in (0, 1) or element != 25:
        raise Fault("bad_plaintext")
    bounds = [(reader.number(4), reader.number(4)) for _ in range(dimensions)]
    if any(length < 1 for length, _ in bounds):
        raise Fault("bad_plaintext")

    def elements(left):
        if not left:
            size = reader.number(4)
            return None if size == -1 else decode_text(reader.take(size))
        return [elements(left[1:]) for _ in range(left[0][0])]
    result = reader.end(elements(bounds) if bounds else [])
    if any(lower != 1 for _, lower in bounds):
        return {"lower_bounds": [lower for _, lower in bounds], "elements": result}
    return result


NUMERIC_SPECIAL = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}
DECODERS = {"text": decode_text, "bytea": bytes.hex, "boolean": decode_boolean,
            "int2": decode_integer(2), "int4": decode_integer(4), "int8": decode_integer(8),
            "float8": decode_float8, "numeric": decode_numeric, "date": decode_date,
            "timestamp": decode_timestamp(""), "timestamptz": decode_timestamp("+00"),
            "interval": decode_interval, "uuid": decode_uuid, "inet": decode_inet,
            "jsonb": decode_jsonb, "text[]": decode_text_array}


def decode_plaintext(type_name, plaintext):
    """What JSON shows of a plaintext: doc/format.md, Types."""
    return DECODERS[type_name](plaintext)


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


def canonical(type_name, mode, plaintext):
    """What a token is made of."""
    if type_name == "text":
        return canonical_text(plaintext, mode)
    if type_name != "numeric":
        return plaintext
    count = int.from_bytes(plaintext[:2], "big")
    while count and plaintext[6 + 2 * count:8 + 2 * count] == b"\x00\x00":
        count -= 1
    return count.to_bytes(2, "big") + plaintext[2:6] + plaintext[8:8 + 2 * count]


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
