#!/usr/bin/env python3
"""Prints the golden vectors of value format 1 (format1.json).

Written from doc/format.md alone: it shares no code with the extension or with decode.py. Every
salt, nonce and key is derived from a name, so that the output never changes:

    make_vectors.py > format1.json
"""

import hashlib
import hmac
import json
import struct
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TYPES = ["text", "bytea", "boolean", "int2", "int4", "int8", "float8", "numeric", "date",
         "timestamp", "timestamptz", "interval", "uuid", "inet", "jsonb", "text[]"]
MODES = {"exact": 1, "nocase": 2, "digits": 3}


def pick(name, size):
    return hashlib.shake_128(b"envcrypt test vector: " + name.encode()).digest(size)


def hmac_sha256(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def kdf(key, label, context):
    return hmac_sha256(key, b"\x00\x00\x00\x01" + label + b"\x00" + context + b"\x00\x00\x01\x00")


def gcm(key, nonce, plaintext, associated):
    return AESGCM(key).encrypt(nonce, plaintext, associated)


def wrap_context(purpose, key_id, tenant):
    return b"envcrypt1\x00%s\x00%016x\x00%s" % (purpose.encode(), key_id, tenant.encode())


def label_bytes(label):
    number = 0
    for place in range(5):
        number = number * 27 + (ord(label[place]) - 96 if place < len(label) else 0)
    return number.to_bytes(3, "big")


def canonical(plaintext, mode):
    if mode == "nocase":
        return bytes(b + 32 if 65 <= b <= 90 else b for b in plaintext)
    if mode == "digits":
        return bytes(b for b in plaintext if 48 <= b <= 57)
    return plaintext


def canonical_numeric(plaintext):
    digits = plaintext[8:]
    while digits.endswith(b"\x00\x00"):
        digits = digits[:-2]
    return struct.pack(">H", len(digits) // 2) + plaintext[2:6] + digits


def base64_text(data):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bits = "".join(format(byte, "08b") for byte in data)
    bits += "0" * (-len(bits) % 6)
    text = "".join(letters[int(bits[i:i + 6], 2)] for i in range(0, len(bits), 6))
    return text + "=" * (-len(text) % 4)


DEK = pick("data key", 32)
SEARCH_KEY = pick("search key", 32)
KEY_ID = 0x0123456789ABCDEF


def good(name, why, type_name, plaintext, key_id=KEY_ID, label=None, mode=None, version=0,
         associated_data=None, **more):
    number = TYPES.index(type_name) + 1
    salt, nonce = pick(name + " salt", 4), pick(name + " nonce", 12)
    flags = number
    header = key_id.to_bytes(8, "big")
    search = None
    if label is not None:
        flags |= 1 << 5
        header += label_bytes(label)
    if mode is not None:
        flags |= 1 << 6
        form = canonical(plaintext, mode) if type_name != "numeric" else canonical_numeric(plaintext)
        token = hmac_sha256(kdf(SEARCH_KEY, b"envcrypt1 token", b""),
                            label_bytes(label) + bytes([number, MODES[mode]]) + form)[:16]
        header += bytes([MODES[mode] << 6 | version]) + token
        search = {"mode": mode, "version": version, "search_key": SEARCH_KEY.hex(),
                  "canonical": form.hex(), "token": token.hex()}
    extra = b""
    if associated_data is not None:
        flags |= 1 << 7
        extra = associated_data.encode()
    authenticated = bytes([0x11, flags]) + header + salt + nonce
    value = authenticated + gcm(kdf(DEK, b"envcrypt1 gcm", salt), nonce, plaintext,
                                authenticated + extra)
    return {"name": name, "why": why, "dek": DEK.hex(), "type": type_name,
            "key_id": "%016x" % key_id, "label": label, "search": search,
            "associated_data": associated_data, "salt": salt.hex(), "nonce": nonce.hex(),
            "plaintext": plaintext.hex(), **more, "value": value.hex(), "text": "ec1:" + base64_text(value)}


def send_format_samples():
    """(type, what a decoder shows, PostgreSQL's binary send format), written out by hand."""
    def texts(*dimensions_and_elements):
        bounds, elements = dimensions_and_elements
        data = struct.pack(">iiI", len(bounds), int(None in elements), 25)
        data += b"".join(struct.pack(">ii", *bound) for bound in bounds)
        return data + b"".join(struct.pack(">i", -1) if e is None else struct.pack(">i", len(e)) + e for e in elements)

    def numeric(weight, sign, scale, *digits):
        return struct.pack(">HhHH%dH" % len(digits), len(digits), weight, sign, scale, *digits)

    far = bytes.fromhex("20010db8000000000000000000000001")
    return [
        ("boolean", True, b"\x01"),
        ("boolean", False, b"\x00"),
        ("int2", -2, struct.pack(">h", -2)),
        ("int4", 2147483647, struct.pack(">i", 2147483647)),
        ("int8", -9223372036854775808, struct.pack(">q", -2**63)),
        ("float8", "-0.5", struct.pack(">d", -0.5)),
        ("float8", "-0", bytes.fromhex("8000000000000000")),
        ("float8", "NaN", bytes.fromhex("7ff8000000000000")),
        ("float8", "-Infinity", bytes.fromhex("fff0000000000000")),
        ("float8", "5e-324", bytes.fromhex("0000000000000001")),
        ("numeric", "12345.6780", struct.pack(">hhHhhhh", 3, 1, 0, 4, 1, 2345, 6780)),
        ("numeric", "0", numeric(0, 0, 0)),
        ("numeric", "0.000", numeric(0, 0, 3)),
        ("numeric", "-0.00005", numeric(-2, 0x4000, 5, 5000)),
        ("numeric", "100000000", numeric(2, 0, 0, 1)),
        ("numeric", "NaN", numeric(0, 0xC000, 0)),
        ("numeric", "Infinity", numeric(0, 0xD000, 0x20)),
        ("numeric", "-Infinity", numeric(0, 0xF000, 0x20)),
        ("date", "2000-01-02", struct.pack(">i", 1)),
        ("date", "4714-11-24 BC", struct.pack(">i", -2451545)),
        ("date", "5874897-12-31", struct.pack(">i", 2145031948)),
        ("date", "infinity", struct.pack(">i", 2**31 - 1)),
        ("date", "-infinity", struct.pack(">i", -2**31)),
        ("timestamp", "2000-01-01 00:00:01", struct.pack(">q", 1000000)),
        ("timestamp", "1999-12-31 23:59:59.999999", struct.pack(">q", -1)),
        ("timestamp", "-infinity", struct.pack(">q", -2**63)),
        ("timestamptz", "2000-01-01 00:00:01+00", struct.pack(">q", 1000000)),
        ("timestamptz", "infinity", struct.pack(">q", 2**63 - 1)),
        ("interval", {"microseconds": 3000000, "days": 2, "months": 1}, struct.pack(">qii", 3000000, 2, 1)),
        ("interval", {"microseconds": -86400000000, "days": 0, "months": -14}, struct.pack(">qii", -86400000000, 0, -14)),
        ("uuid", "00112233-4455-6677-8899-aabbccddeeff",
         bytes.fromhex("00112233445566778899aabbccddeeff")),
        ("inet", "192.0.2.1/24", bytes([2, 24, 0, 4, 192, 0, 2, 1])),
        ("inet", "192.0.2.1", bytes([2, 32, 0, 4, 192, 0, 2, 1])),
        ("inet", "2001:db8::1/64", bytes([3, 64, 0, 16]) + far),
        ("jsonb", '{"a": 1}', b"\x01" + b'{"a": 1}'),
        ("jsonb", '"\u00e9"', b"\x01" + b'"\xc3\xa9"'),
        ("text[]", ["a", None, ""], texts([(3, 1)], [b"a", None, b""])),
        ("text[]", [], texts([], [])),
        ("text[]", [["a", "b"], ["c", "d"]], texts([(2, 1), (2, 1)], [b"a", b"b", b"c", b"d"])),
        ("text[]", {"lower_bounds": [0], "elements": ["\u00e9"]}, texts([(1, 0)], [b"\xc3\xa9"])),
    ]


def make_good():
    vectors = [
        good("text", "the smallest useful value", "text", b"hello"),
        good("text_empty", "an empty plaintext: 42 bytes", "text", b""),
        good("text_utf8", "text is UTF-8 whatever the server encoding", "text",
             "Zażółć gęślą jaźń 🔑".encode()),
        good("text_4k", "4 KiB of plaintext", "text", (b"0123456789abcdef" * 256)),
        good("bytea", "bytea is the bytes themselves", "bytea", bytes([0, 1, 0x7F, 0x80, 0xFF])),
        good("bytea_empty", "an empty bytea differs from an empty text in byte 1", "bytea", b""),
        good("bytea_4k", "4 KiB of plaintext, longer than any block that a cipher works on",
             "bytea", pick("bytea_4k", 4096)),
        good("bytea_96", "where the extension changes library", "bytea", pick("bytea_96", 96)),
        good("bytea_97", "where the extension changes library", "bytea", pick("bytea_97", 97)),
        good("key_id_high_bit", "key ids are unsigned: as bigint this one is negative", "text",
             b"hello", key_id=0xFEDCBA9876543210),
        good("key_id_ones", "as bigint this is -1", "text", b"hello", key_id=2**64 - 1),
        good("key_id_zero", "the parser gives no key id a meaning", "text", b"hello", key_id=0),
        good("label", "a label of three letters", "text", b"hello", label="ssn"),
        good("label_a", "the smallest label", "text", b"hello", label="a"),
        good("label_aaaaa", "five times the smallest letter", "text", b"hello", label="aaaaa"),
        good("label_zzzzz", "the largest label", "text", b"hello", label="zzzzz"),
        good("bound", "associated data without a label", "text", b"hello",
             associated_data="patient:42"),
        good("bound_utf8", "associated data is UTF-8", "bytea", b"\x00", associated_data="Ärztin 7"),
        good("bound_label", "associated data and label", "text", b"hello", label="ssn",
             associated_data="42"),
        good("token_exact", "an exact token", "text", b"Ada.Lovelace@Example.org", label="email",
             mode="exact", version=1),
        good("token_nocase", "a nocase token: A to Z folded, nothing else", "text",
             "Ada.LOVELACE@Exämple.ORG Ä".encode(), label="email", mode="nocase", version=2),
        good("token_digits", "a digits token: 0 to 9 kept, nothing else", "text",
             b"+1 (555) 010-4477 ext. 9", label="phone", mode="digits", version=63),
        good("token_digits_none", "a digits token of a text without digits", "text", b"unknown",
             label="phone", mode="digits", version=1),
        good("token_empty", "a token of an empty text", "text", b"", label="ssn", mode="exact",
             version=1),
        good("token_bytea", "a token of a bytea", "bytea", b"hello", label="ssn", mode="exact",
             version=1),
        good("token_high_bit", "a token with a key id that has the high bit", "text", b"hello",
             key_id=0x8000000000000000, label="z", mode="exact", version=32),
        good("everything", "the worked example of doc/format.md: label, token, associated data",
             "text", b"078-05-1120", label="ssn", mode="exact", version=1,
             associated_data="patient:42"),
    ]
    seen = {}
    for type_name, shown, plaintext in send_format_samples():
        seen[type_name] = seen.get(type_name, 0) + 1
        name = "type_" + type_name.replace("[]", "_array") + ("_%d" % seen[type_name] if seen[type_name] > 1 else "")
        vectors.append(good(name, "type number and send format of " + (shown if isinstance(shown, str) else json.dumps(shown)),
                            type_name, plaintext, shown=shown))
    for name, scale, why in (("token_numeric", 1, "a token of 1.5"), ("token_numeric_scale", 4, "the same token of 1.5000")):
        vectors.append(good(name, why, "numeric", struct.pack(">HhHHHH", 2, 0, 0, scale, 1, 5000), label="pay", mode="exact", version=1))
    vectors.append(good("token_numeric_zero", "a token of 0.00", "numeric", struct.pack(">HhHH", 0, 0, 0, 2), label="pay", mode="exact", version=1))
    vectors.append(good("token_date", "a token of a date", "date", struct.pack(">i", 1), label="born", mode="exact", version=1))
    return vectors


def make_bad(by_name):
    vectors = []
    value = {name: bytes.fromhex(entry["value"]) for name, entry in by_name.items()}

    def bad(name, expect, why, data=None, text=None, associated_data=None, dek=DEK):
        entry = {"name": name, "expect": expect, "why": why}
        if text is None:
            entry["value"] = data.hex()
            entry["dek"] = dek.hex()
            entry["associated_data"] = associated_data
        else:
            entry["text"] = text
        vectors.append(entry)

    def patched(name, changes):
        data = bytearray(value[name])
        for at, byte in changes.items():
            data[at] = byte
        return bytes(data)

    def flipped(name, at):
        data = bytearray(value[name])
        data[at] ^= 1
        return bytes(data)

    def with_label(number):
        data = bytearray(value["label"])
        data[10:13] = number.to_bytes(3, "big")
        return bytes(data)

    # fields that are wrong
    bad("empty", "too_short", "no bytes at all", b"")
    bad("one_byte", "too_short", "a format byte alone", b"\x11")
    bad("short_41", "too_short", "one byte fewer than an empty plaintext has", value["text"][:41])
    bad("short_label", "too_short", "44 bytes with a label", value["label"][:44])
    bad("short_token", "too_short", "61 bytes with label and token", value["token_empty"][:61])
    bad("format_0", "unknown_format", "format 0", patched("text", {0: 0x01}))
    bad("format_2", "unknown_format", "format 2", patched("text", {0: 0x21}))
    bad("format_text", "unknown_format", "plaintext where a value is expected", b"078-05-1120")
    bad("algorithm_0", "unknown_algorithm", "algorithm 0", patched("text", {0: 0x10}))
    bad("algorithm_2", "unknown_algorithm", "algorithm 2", patched("text", {0: 0x12}))
    bad("format_first", "unknown_format", "the format is told even of one byte", b"\x21")
    bad("algorithm_first", "unknown_algorithm", "the algorithm is told even of one byte", b"\x12")
    bad("type_0", "unknown_type", "type 0", patched("text", {1: 0}))
    bad("type_17", "unknown_type", "type 17", patched("text", {1: 17}))
    bad("type_31", "unknown_type", "type 31", patched("text", {1: 31}))
    bad("label_zero", "bad_label", "a label field without a letter", with_label(0))
    bad("label_over", "bad_label", "27^5: one above the largest number of five places",
        with_label(27**5))
    bad("label_ones", "bad_label", "all bits set", with_label(2**24 - 1))
    bad("label_not_left", "bad_label", "'a' in the last place instead of the first", with_label(1))
    bad("label_leading_gap", "bad_label", "four letters after an empty first place",
        with_label(27**4 - 1))
    bad("label_inner_gap", "bad_label", "'a', nothing, 'a'", with_label(27**4 + 27**2))
    bad("label_last_gap", "bad_label", "three letters, nothing, 'a'",
        with_label(27**4 + 27**3 + 27**2 + 1))
    bad("token_no_label", "token_without_label", "bit 6 without bit 5",
        patched("token_exact", {1: 0x41}))
    bad("mode_0", "bad_search_mode", "search mode 0", patched("token_exact", {13: 0x01}))
    bad("mode_nocase_bytea", "bad_search_mode", "nocase is for text only",
        patched("token_bytea", {13: 0x81}))
    bad("mode_digits_bytea", "bad_search_mode", "digits is for text only",
        patched("token_bytea", {13: 0xC1}))
    for name in ("boolean", "float8", "interval", "jsonb", "text[]"):
        number = TYPES.index(name) + 1
        bad("mode_" + name.replace("[]", "_array"), "bad_search_mode", name + " has no token",
            patched("token_bytea", {1: 0x60 | number}))
    bad("version_0", "bad_search_version", "search key version 0",
        patched("token_exact", {13: 0x40}))

    # several at once: the first check that fails is the one that is told
    bad("order_type_label", "unknown_type", "type before label",
        patched("label", {1: 0x20, 10: 0, 11: 0, 12: 0}))
    bad("order_mode_version", "bad_search_mode", "mode before version",
        patched("token_exact", {13: 0x00}))

    # tags that do not fit
    bad("tag_last", "tag", "the last bit of the tag", flipped("text", -1))
    bad("tag_ciphertext", "tag", "a bit of the ciphertext", flipped("text", 28))
    bad("tag_nonce", "tag", "a bit of the nonce", flipped("text", 14))
    bad("tag_salt", "tag", "a bit of the salt: another subkey", flipped("text", 10))
    bad("tag_key_id", "tag", "a bit of the key id", flipped("text", 9))
    bad("tag_type", "tag", "a text that claims to be a bytea", patched("text", {1: 2}))
    bad("tag_label", "tag", "the label of another column",
        patched("label", dict(zip((10, 11, 12), label_bytes("email")))))
    bad("tag_token", "tag", "a bit of the token", flipped("token_exact", 14))
    bad("tag_token_version", "tag", "another search key version",
        patched("token_exact", {13: 0x42}))
    bad("tag_empty", "tag", "a bit of the tag of an empty plaintext", flipped("text_empty", -1))
    bad("tag_cut", "tag", "the last byte is missing", value["text"][:-1])
    bad("tag_longer", "tag", "a byte too many", value["text"] + b"\x00")
    bad("tag_label_removed", "tag", "label and its bit cut out",
        patched("label", {1: 0x01})[:10] + value["label"][13:])
    bad("tag_token_removed", "tag", "token and its bit cut out",
        patched("token_exact", {1: 0x21})[:13] + value["token_exact"][30:])
    bad("tag_other_key", "tag", "another data key", value["text"], dek=pick("other key", 32))
    bad("tag_raw_key", "tag", "sealed under the data key itself instead of its subkey",
        value["text"][:26] + gcm(DEK, value["text"][14:26], b"hello", value["text"][:26]))
    bad("tag_other_row", "tag", "the associated data of another row", value["bound"],
        associated_data="patient:43")
    bad("tag_bound_claimed", "tag", "an unbound value whose bit 7 was set",
        patched("text", {1: 0x81}), associated_data="patient:42")
    bad("tag_bound_denied", "tag", "a bound value whose bit 7 was cleared",
        patched("bound", {1: 0x01}))

    # associated data that is no matter of the tag
    bad("ad_missing", "associated_data_missing", "a bound value and no associated data",
        value["bound"])
    bad("ad_empty", "associated_data_missing", "empty associated data is none", value["bound"],
        associated_data="")
    bad("ad_unexpected", "associated_data_unexpected",
        "a value that is not bound, with associated data", value["text"],
        associated_data="patient:42")
    empty_bound = bytes([0x11, 0x81]) + value["text"][2:26]
    empty_bound += gcm(kdf(DEK, b"envcrypt1 gcm", empty_bound[10:14]), empty_bound[14:26],
                       b"hello", empty_bound)
    bad("ad_bound_to_nothing", "associated_data_missing",
        "bit 7 set and sealed with empty associated data, by somebody who has the key",
        empty_bound, associated_data="")

    # plaintexts that are none of their type
    def sealed_text(name, plaintext):
        return bytes.fromhex(good(name, "", "text", plaintext)["value"])

    bad("text_not_utf8", "bad_plaintext", "a text that is not UTF-8",
        sealed_text("text_not_utf8", b"caf\xe9"))
    bad("text_surrogate", "bad_plaintext", "a surrogate in UTF-8",
        sealed_text("text_surrogate", b"\xed\xa0\x80"))
    bad("text_overlong", "bad_plaintext", "an overlong encoding of '/'",
        sealed_text("text_overlong", b"\xc0\xaf"))
    bad("text_zero", "bad_plaintext", "a zero byte in a text",
        sealed_text("text_zero", b"a\x00b"))

    def sealed(type_name, name, plaintext):
        return bytes.fromhex(good(name, "", type_name, plaintext)["value"])

    for type_name, what, why, plaintext in (
            ("boolean", "two", "a boolean of 2", b"\x02"), ("boolean", "empty", "no boolean at all", b""),
            ("int4", "short", "three bytes of an int4", b"\x00\x00\x01"), ("int8", "long", "nine bytes of an int8", bytes(9)),
            ("float8", "short", "seven bytes of a float8", bytes(7)),
            ("numeric", "digit", "a digit of 10000", struct.pack(">HhHHH", 1, 0, 0, 0, 10000)),
            ("numeric", "count", "fewer digits than it says", struct.pack(">HhHHH", 2, 0, 0, 0, 1)),
            ("numeric", "sign", "an unknown sign", struct.pack(">HhHHH", 1, 0, 1, 0, 1)),
            ("interval", "short", "an interval without months", bytes(12)), ("uuid", "short", "15 bytes of a uuid", bytes(15)),
            ("inet", "family", "an unknown family", bytes([4, 32, 0, 4, 1, 2, 3, 4])),
            ("inet", "bits", "a prefix of 33 bits", bytes([2, 33, 0, 4, 1, 2, 3, 4])),
            ("inet", "cidr", "marked as a cidr", bytes([2, 32, 1, 4, 1, 2, 3, 4])),
            ("jsonb", "version", "version 2", b"\x02{}"), ("jsonb", "broken", "a document that is cut short", b"\x01{"),
            ("text[]", "element", "elements of another type", struct.pack(">iiI", 0, 0, 17)),
            ("text[]", "cut", "fewer elements than it says", struct.pack(">iiIii", 1, 0, 25, 2, 1) + struct.pack(">i", 0)),
            ("text[]", "long", "bytes after the last element", struct.pack(">iiI", 0, 0, 25) + b"x"),
            ("text[]", "deep", "seven dimensions", struct.pack(">iiI", 7, 0, 25) + struct.pack(">ii", 1, 1) * 7)):
        name = "%s_%s" % (type_name.replace("[]", "_array"), what)
        bad(name, "bad_plaintext", why, sealed(type_name, name, plaintext))

    # text forms
    one = by_name["text_empty"]["text"]     # 42 bytes: no padding
    two = by_name["label"]["text"]          # 50 bytes: one =
    three = by_name["type_boolean"]["text"]  # 43 bytes: two =
    assert not one.endswith("=") and two.endswith("=") and not two.endswith("==")
    assert three.endswith("==")
    bad("text_nothing", "not_text", "an empty text", text="")
    bad("text_prefix_cut", "not_text", "no colon", text=one.replace("ec1:", "ec1"))
    bad("text_prefix_none", "not_text", "base64 alone", text=one[4:])
    bad("text_prefix_case", "not_text", "upper-case prefix", text="EC" + one[2:])
    bad("text_prefix_2", "not_text", "another prefix", text="ec2" + one[3:])
    bad("text_space_before", "not_text", "a space before", text=" " + one)
    bad("text_space_after", "not_text", "a space after", text=one + " ")
    bad("text_newline_after", "not_text", "a newline after", text=one + "\n")
    bad("text_newline_inside", "not_text", "a line break inside", text=one[:20] + "\n" + one[20:])
    bad("text_four_spaces", "not_text", "spaces inside that keep the length a multiple of four",
        text=one[:20] + "    " + one[20:])
    bad("text_padding_missing", "not_text", "no padding", text=two.rstrip("="))
    bad("text_padding_half", "not_text", "one = of two", text=three[:-1])
    bad("text_padding_more", "not_text", "padding that is not needed", text=one + "====")
    bad("text_padding_inside", "not_text", "two encodings in a row", text=three + one[4:])
    bad("text_url_alphabet", "not_text", "the base64url alphabet", text=one[:10] + "-_" + one[12:])
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bad("text_trailing_bits_2", "not_text", "unused bits before = that are not zero",
        text=two[:-2] + alphabet[alphabet.index(two[-2]) + 1] + "=")
    bad("text_trailing_bits_4", "not_text", "unused bits before == that are not zero",
        text=three[:-3] + alphabet[alphabet.index(three[-3]) + 1] + "==")
    bad("text_not_ascii", "not_text", "a letter outside ASCII", text=one[:-1] + "é")
    bad("text_not_ascii_4", "not_text",
        "letters outside ASCII that keep the length a multiple of four", text=one[:-2] + "é")
    bad("text_empty_value", "too_short", "the text form of no bytes", text="ec1:")
    bad("text_wrong_format", "unknown_format", "good base64 of format 0", text="ec1:AQ==")
    return vectors


def make_derivations():
    tenant_names = ["default", "patient:42", "A._:@/+=-z9"]
    key_ids = [0, 1, KEY_ID, 0x8000000000000000, 2**64 - 1]
    group_key, master = pick("group key", 32), pick("master key", 32)
    context = wrap_context("data", KEY_ID, "patient:42")
    context_search = wrap_context("search", 2**64 - 1, "default")
    salt = pick("wrap salt", 16)

    def commitment(purpose, key_id, tenant, key):
        c = wrap_context(purpose, key_id, tenant)
        return {"purpose": purpose, "key_id": "%016x" % key_id, "tenant": tenant,
                "context": c.hex(), "key": key.hex(),
                "commitment": kdf(key, b"envcrypt1 commit", c).hex()}

    def group(key, salt, child_context, child):
        wrapped = b"\x01" + salt + gcm(kdf(key, b"envcrypt1 wrap", salt), bytes(12), child,
                                       child_context)
        return {"key": key.hex(), "salt": salt.hex(), "context": child_context.hex(),
                "child": child.hex(), "wrapped": wrapped.hex()}

    def local_id(key):
        return kdf(key, b"envcrypt1 local-id", b"")[:8]

    def local(key, salt, child_context, child):
        wrapped = b"\x01" + local_id(key) + salt
        wrapped += gcm(kdf(key, b"envcrypt1 local", salt), bytes(12), child, child_context)
        return {"key": key.hex(), "salt": salt.hex(), "context": child_context.hex(),
                "child": child.hex(), "wrapped": wrapped.hex(), "local_id": local_id(key).hex()}

    def token(label, type_name, mode, form):
        key = kdf(SEARCH_KEY, b"envcrypt1 token", b"")
        number = TYPES.index(type_name) + 1
        data = label_bytes(label) + bytes([number, MODES[mode]]) + form
        return {"search_key": SEARCH_KEY.hex(), "token_key": key.hex(), "label": label,
                "type": type_name, "mode": mode, "canonical": form.hex(),
                "token": hmac_sha256(key, data)[:16].hex()}

    return {
        "kdf": [{"key": key.hex(), "label": label, "context": x.hex(),
                 "derived": kdf(key, label.encode(), x).hex()}
                for key, label, x in [(bytes(32), "", b""),
                                      (DEK, "envcrypt1 gcm", bytes(4)),
                                      (DEK, "envcrypt1 gcm", b"\xff\xff\xff\xff"),
                                      (SEARCH_KEY, "envcrypt1 token", b""),
                                      (DEK, "a label", pick("kdf context", 100))]],
        "value_subkey": [{"dek": DEK.hex(), "salt": s.hex(),
                          "subkey": kdf(DEK, b"envcrypt1 gcm", s).hex()}
                         for s in (bytes(4), b"\xff\xff\xff\xff", pick("text salt", 4))],
        "commitment": [commitment(purpose, key_id, tenant, DEK)
                       for purpose, key_id, tenant in
                       [("data", KEY_ID, tenant_names[0]), ("search", KEY_ID, tenant_names[0]),
                        ("group", KEY_ID, tenant_names[0]), ("data", KEY_ID, tenant_names[1]),
                        ("data", KEY_ID, tenant_names[2]), ("data", KEY_ID, "t" * 128)] +
                       [("data", key_id, tenant_names[0]) for key_id in key_ids]],
        "token": [token("ssn", "text", "exact", b"078-05-1120"),
                  token("ssn", "text", "digits", b"078051120"),
                  token("ssn", "text", "nocase", b"078-05-1120"),
                  token("ssn", "bytea", "exact", b"078-05-1120"),
                  token("a", "text", "exact", b""),
                  token("zzzzz", "int8", "exact", struct.pack(">q", 42))],
        "group_wrap": [group(group_key, salt, context, DEK),
                       group(group_key, bytes(16), context_search, SEARCH_KEY)],
        "local_wrap": [local(master, salt, context, DEK),
                       local(master, bytes(16), context_search, SEARCH_KEY)],
    }


def make():
    entries = make_good()
    by_name = {entry["name"]: entry for entry in entries}
    bad = make_bad(by_name)
    names = [entry["name"] for entry in entries + bad]
    assert len(set(names)) == len(names)
    return {
        "about": [
            "envcrypt, value format 1 (doc/format.md). Made by make_vectors.py; do not edit.",
            "good: opens to `plaintext` and is what sealing with this salt and nonce gives.",
            "bad: must fail as `expect` says. With `text`, when that text is read; else when the",
            "bytes `value` are parsed, or opened under `dek` with `associated_data`.",
            "shown: what test/vectors/decode.py makes of the plaintext.",
        ],
        "good": entries,
        "bad": bad,
        "derivations": make_derivations(),
    }


def render():
    # one vector a line: a changed vector is then one line of a diff
    made = make()

    def lines(items, indent):
        pad = " " * indent
        return "[\n" + ",\n".join(pad + json.dumps(item) for item in items) + "\n" + pad[:-1] + "]"

    derivations = ",\n".join('  %s: %s' % (json.dumps(name), lines(items, 3))
                             for name, items in made["derivations"].items())
    return '{\n "about": %s,\n "good": %s,\n "bad": %s,\n "derivations": {\n%s\n }\n}\n' % (
        lines(made["about"], 2), lines(made["good"], 2), lines(made["bad"], 2), derivations)


if __name__ == "__main__":
    sys.stdout.write(render())
