#!/usr/bin/env python3
"""An application that encrypts one value at a time under AWS KMS, without any database.

    envelope.py encrypt ENDPOINT KEY_ID <PLAINTEXT >JSON        envelope.py decrypt ENDPOINT <JSON >PLAINTEXT

JSON has encrypted_dek, nonce and ciphertext in hexadecimal, as such applications store them. Run by a Python that has the
packages of moto.requirements; boto3 finds region, credentials and CA in the environment.
"""
import json
import secrets
import sys

import boto3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def encrypt(kms, key_id, plaintext):
    data_key = kms.generate_data_key(KeyId=key_id, KeySpec="AES_256")
    nonce = secrets.token_bytes(12)
    ciphertext = AESGCM(data_key["Plaintext"]).encrypt(nonce, plaintext, None)
    return {"encrypted_dek": data_key["CiphertextBlob"].hex(), "nonce": nonce.hex(), "ciphertext": ciphertext.hex()}


def decrypt(kms, stored):
    parts = {name: bytes.fromhex(stored[name]) for name in ("encrypted_dek", "nonce", "ciphertext")}
    data_key = kms.decrypt(CiphertextBlob=parts["encrypted_dek"])
    return AESGCM(data_key["Plaintext"]).decrypt(parts["nonce"], parts["ciphertext"], None)


def main(what, endpoint, *arguments):
    kms = boto3.client("kms", endpoint_url=endpoint)
    given = sys.stdin.buffer.read()
    if what == "encrypt":
        print(json.dumps(encrypt(kms, *arguments, given)))
    else:
        sys.stdout.buffer.write(decrypt(kms, json.loads(given)))


main(*sys.argv[1:])
