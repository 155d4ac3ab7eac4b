#!/usr/bin/env python3
"""Computes the keys that a backend has in hand, without the extension: from what the key tables and files hold.

    derive_secrets.py VECTORS <REQUEST

VECTORS is the directory of decode.py. REQUEST is one line of JSON: `master`, the path of a local KMS's key file; `keys`, a
list of [purpose, key id, tenant, wrapped, commitment] with the bytes in hex; `values`, stored values of that tenant;
optionally `aws`, {name: [secret access key, region]}, and `rsa`, a private key in PEM. Prints one line of JSON, an object
of names and bytes in hex.
"""
import datetime
import hashlib
import hmac
import json
import sys

sys.path.insert(0, sys.argv[1])
import decode  # noqa: E402


def aws_keys(name, secret, region):
    """The steps of SigV4, of today and, about midnight, its neighbours."""
    now = datetime.datetime.now(datetime.timezone.utc)
    for day in sorted({(now + datetime.timedelta(minutes=m)).strftime("%Y%m%d") for m in (-30, 0, 30)}):
        for service in ("kms", "sts"):
            key = b"AWS4" + secret.encode()
            for part in (day, region, service, "aws4_request"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
                yield f"{name}: {day} {service} {part}", key


def rsa_numbers(pem):
    from cryptography.hazmat.primitives import serialization
    numbers = serialization.load_pem_private_key(pem.encode(), None).private_numbers()
    for name in ("d", "p", "q", "dmp1", "dmq1", "iqmp"):
        number = getattr(numbers, name)
        size = (number.bit_length() + 7) // 8
        yield f"private key: {name}", number.to_bytes(size, "big")
        yield f"private key: {name}, as OpenSSL has it", number.to_bytes(size, "little")
    lines = pem.strip().split("\n")[1:-1]
    for number in range(2, len(lines), 4):
        yield f"private key: line {number}", lines[number].encode()


def main():
    request = json.loads(sys.stdin.readline())
    told = {}
    with open(request["master"], encoding="ascii") as file:
        master = bytes.fromhex(file.read().split()[-1])
    told["local master key"] = master
    opened = {}
    for purpose, key_id, tenant, wrapped, commitment in request["keys"]:
        context = decode.wrap_context(purpose, int(key_id, 16), tenant)
        wrapped = bytes.fromhex(wrapped)
        key = decode.local_unwrap(master, wrapped, context)
        assert decode.commitment(key, context).hex() == commitment
        opened[purpose] = key
        told[f"{purpose} key"] = key
        told[f"what wraps the {purpose} key"] = decode.kdf(master, "envcrypt1 local", wrapped[9:25])
    told["token key"] = decode.kdf(opened["search"], "envcrypt1 token", b"")
    for number, value in enumerate(request["values"]):
        parsed = decode.parse(decode.from_line(value))
        told[f"value subkey {number}"] = decode.kdf(opened["data"], "envcrypt1 gcm", parsed.salt)
    for name, (secret, region) in request.get("aws", {}).items():
        told.update(aws_keys(name, secret, region))
    if "rsa" in request:
        told.update(rsa_numbers(request["rsa"]))
    print(json.dumps({name: secret.hex() for name, secret in told.items()}))


main()
