#!/usr/bin/env python3
"""A KMS that answers after some time and needs little of the machine, for measuring: encrypt and decrypt of Google Cloud KMS.

    slow_kms.py CERTS MILLISECONDS

Prints one line of JSON (port, control) and serves until its standard input closes. It checks no identity and encrypts
nothing: what it "wraps" is the key with a mark of its associated data. control speaks plain HTTP: GET /count tells how many
requests there were, GET /rotate makes a new version of the key. Whatever tests behaviour uses gcp_kms.py.
"""
import asyncio
import base64
import hashlib
import json
import os
import ssl
import sys

CRC = []
for i in range(256):
    for _ in range(8):
        i = i >> 1 ^ (0x82f63b78 if i & 1 else 0)
    CRC.append(i)
version = 1
count = 0


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ CRC[(crc ^ byte) & 0xff]
    return str(crc ^ 0xffffffff)


def answer(path, body):
    asked = json.loads(body)
    key, verb = path[len("/v1/"):].rsplit(":", 1)
    mark = hashlib.sha256(base64.b64decode(asked["additionalAuthenticatedData"])).digest()[:16]
    if verb == "encrypt":
        wrapped = mark + base64.b64decode(asked["plaintext"])
        return 200, {"name": f"{key}/cryptoKeyVersions/{version}", "ciphertext": base64.b64encode(wrapped).decode(),
                     "ciphertextCrc32c": crc32c(wrapped), "verifiedPlaintextCrc32c": True,
                     "verifiedAdditionalAuthenticatedDataCrc32c": True}
    wrapped = base64.b64decode(asked["ciphertext"])
    if wrapped[:16] != mark:
        return 400, {"error": {"status": "INVALID_ARGUMENT", "message": "Decryption failed"}}
    return 200, {"plaintext": base64.b64encode(wrapped[16:]).decode(), "plaintextCrc32c": crc32c(wrapped[16:])}


async def serve(reader, writer, delay):
    global count
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            length = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = await reader.readexactly(length)
            count += 1
            await asyncio.sleep(delay)
            status, said = answer(path, body)
            said = json.dumps(said).encode()
            writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(said)) + said)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def control(reader, writer):
    global version
    path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
    version += path == b"/rotate"
    said = str(count).encode()
    writer.write(b"HTTP/1.1 200 x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(said) + said)
    await writer.drain()
    writer.close()


async def main():
    certs, milliseconds = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certs}/good.pem", f"{certs}/good.key")
    kms = await asyncio.start_server(lambda r, w: serve(r, w, int(milliseconds) / 1000), "127.0.0.1", 0, ssl=context,
                                     backlog=1000)
    other = await asyncio.start_server(control, "127.0.0.1", 0)
    print(json.dumps({"port": kms.sockets[0].getsockname()[1], "control": other.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    os._exit(0)

asyncio.run(main())
