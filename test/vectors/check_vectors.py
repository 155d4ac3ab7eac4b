#!/usr/bin/env python3
"""Checks format1.json with decode.py, and that doc/format.md and make_vectors.py agree with it.

Ends with the line "N passed, N failed", and with 1 if any failed.
"""

import json
import pathlib
import re
import subprocess
import sys

import decode
import make_vectors

HERE = pathlib.Path(__file__).resolve().parent
FORMAT = HERE.parent.parent / "doc" / "format.md"
counts = {True: 0, False: 0}


def check(name, holds):
    counts[bool(holds)] += 1
    if not holds:
        print("FAILED:", name)


def same(name, got, expected):
    check("%s: got %r, expected %r" % (name, got, expected), got == expected)


def fault_of(action):
    try:
        action()
    except decode.Fault as fault:
        return fault.name
    return "none"


def check_good(vector):
    name, dek = vector["name"], bytes.fromhex(vector["dek"])
    data = bytes.fromhex(vector["value"])
    same(name + " text form", decode.from_text(vector["text"]), data)
    same(name + " bytea form", decode.from_line("\\x" + vector["value"]), data)
    value = decode.parse(data)
    search = vector["search"]
    expected = {"format": 1, "algorithm": 1, "type": vector["type"], "key_id": vector["key_id"],
                "label": vector["label"], "search_mode": search and search["mode"],
                "search_version": search and search["version"],
                "token": search and search["token"],
                "bound": vector["associated_data"] is not None, "salt": vector["salt"],
                "nonce": vector["nonce"]}
    same(name + " header", value.fields(), expected)
    plaintext = decode.open_value(value, dek, vector["associated_data"])
    same(name + " plaintext", plaintext.hex(), vector["plaintext"])
    shown = bytes.fromhex(vector["plaintext"])
    expected["plaintext"] = vector.get("shown", shown.decode() if vector["type"] == "text" else shown.hex())
    if "shown" not in vector and vector["type"] not in ("text", "bytea"):
        expected["plaintext"] = decode.decode_plaintext(vector["type"], shown)
    same(name + " decoded", decode.decode(vector["text"], dek, vector["associated_data"]), expected)
    if search:
        canonical = bytes.fromhex(search["canonical"])
        same(name + " canonical", decode.canonical(vector["type"], search["mode"], plaintext), canonical)
        token = decode.search_token(bytes.fromhex(search["search_key"]), vector["label"],
                                    vector["type"], search["mode"], canonical)
        same(name + " token", token.hex(), search["token"])
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1:]
        if fault_of(lambda: decode.open_value(decode.parse(changed), dek,
                                              vector["associated_data"])) == "none":
            check("%s: byte %d was changed and it still opens" % (name, at), False)
            break
    else:
        check(name + " changed bytes", True)


def check_bad(vector):
    def read():
        if "text" in vector:
            decode.parse(decode.from_text(vector["text"]))
            return
        value = decode.parse(bytes.fromhex(vector["value"]))
        plaintext = decode.open_value(value, bytes.fromhex(vector["dek"]),
                                      vector["associated_data"])
        decode.decode_plaintext(value.type, plaintext)

    same("%s (%s)" % (vector["name"], vector["why"]), fault_of(read), vector["expect"])


def check_derivations(derivations):
    for entry in derivations["kdf"]:
        got = decode.kdf(bytes.fromhex(entry["key"]), entry["label"],
                         bytes.fromhex(entry["context"]))
        same("kdf", got.hex(), entry["derived"])
    for entry in derivations["value_subkey"]:
        got = decode.kdf(bytes.fromhex(entry["dek"]), "envcrypt1 gcm", bytes.fromhex(entry["salt"]))
        same("value_subkey", got.hex(), entry["subkey"])
    for entry in derivations["commitment"]:
        context = decode.wrap_context(entry["purpose"], int(entry["key_id"], 16), entry["tenant"])
        same("context", context.hex(), entry["context"])
        got = decode.commitment(bytes.fromhex(entry["key"]), context)
        same("commitment", got.hex(), entry["commitment"])
    for entry in derivations["token"]:
        key = bytes.fromhex(entry["search_key"])
        same("token key", decode.kdf(key, "envcrypt1 token", b"").hex(), entry["token_key"])
        got = decode.search_token(key, entry["label"], entry["type"], entry["mode"],
                                  bytes.fromhex(entry["canonical"]))
        same("token", got.hex(), entry["token"])
    for kind, unwrap in (("group_wrap", decode.group_unwrap), ("local_wrap", decode.local_unwrap)):
        for entry in derivations[kind]:
            key, context = bytes.fromhex(entry["key"]), bytes.fromhex(entry["context"])
            wrapped = bytes.fromhex(entry["wrapped"])
            same(kind, unwrap(key, wrapped, context).hex(), entry["child"])
            same(kind + " context", fault_of(lambda: unwrap(key, wrapped, context + b"x")), "tag")
            same(kind + " length", fault_of(lambda: unwrap(key, wrapped[:-1], context)),
                 "not_wrapped")
            if kind == "local_wrap":
                same("local id", decode.local_id(key).hex(), entry["local_id"])
                same("other master", fault_of(lambda: unwrap(bytes(32), wrapped, context)),
                     "other_master_key")


def check_document(good):
    text = FORMAT.read_text(encoding="utf-8")
    vector = good["everything"]
    # the worked example: rows "| hex | field |" after its heading
    example = text.split("## Worked example", 1)[1]
    rows = re.findall(r"^\| `([0-9a-f ]+)` \|", example, re.MULTILINE)
    same("format.md: bytes of the worked example", "".join(rows).replace(" ", ""), vector["value"])
    joined = example.replace("\n", "")
    for what in ("dek", "text", "salt", "nonce", "value"):
        check("format.md: %s of the worked example" % what, vector[what] in joined)
    search = vector["search"]
    context = decode.wrap_context("data", int(vector["key_id"], 16), "patient:42").hex()
    check("format.md: wrap context", context in text.replace(" ", ""))
    salt = bytes.fromhex(vector["salt"])
    subkey = decode.kdf(bytes.fromhex(vector["dek"]), "envcrypt1 gcm", salt)
    token_key = decode.kdf(bytes.fromhex(search["search_key"]), "envcrypt1 token", b"")
    for what, digits in (("search key", search["search_key"]), ("token", search["token"]),
                         ("subkey", subkey.hex()), ("token key", token_key.hex())):
        check("format.md: %s of the worked example" % what, digits in example)
    snippet = re.search(r"^```python\n(.*?)^```", example, re.MULTILINE | re.DOTALL).group(1)
    ran = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True)
    same("format.md: output of the snippet", (ran.stdout, ran.returncode),
         (bytes.fromhex(vector["plaintext"]).decode() + "\n", 0))
    names = set(re.findall(r"^\| `([a-z_]+)` \|", text.split("## Faults", 1)[1]
                           .split("\n## ", 1)[0], re.MULTILINE))
    used = set(re.findall(r'Fault\("([a-z_]+)"\)', (HERE / "decode.py").read_text()))
    same("format.md: names of faults", names, used - {"not_wrapped", "other_master_key"})


def main():
    stored = (HERE / "format1.json").read_text(encoding="utf-8")
    check("format1.json is what make_vectors.py makes", stored == make_vectors.render())
    vectors = json.loads(stored)
    for vector in vectors["good"]:
        check_good(vector)
    for vector in vectors["bad"]:
        check_bad(vector)
    check_derivations(vectors["derivations"])
    check_document({vector["name"]: vector for vector in vectors["good"]})
    print("%d passed, %d failed" % (counts[True], counts[False]))
    return 1 if counts[False] else 0


if __name__ == "__main__":
    sys.exit(main())
