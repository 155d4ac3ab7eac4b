#!/usr/bin/env python3
"""A KMS that speaks the transit API of OpenBao, well and badly, for tests on loopback.

    fault_kms.py CERTS

CERTS is a directory made by make_certs.sh. Prints one line of JSON, the port of each way in by its
name, and serves until its standard input closes. The ways in: `good`, and those of tls_server.py that
fail before HTTP (`expired`, `wrong_host`, `other_ca`, `tls11`, `mtls`, `plain`, `silent`, `cut`,
`reset`, `refused`, `full`). `control` speaks plain HTTP: GET /counts tells how often each
SCENARIO:OPERATION was asked, GET /rotate makes a new version of every master key; GET /on and /off turn what switch/SCENARIO does.

What happens is chosen by the request's mount, so by an option of the database's server or mapping:
SCENARIO, SCENARIO.OPERATION (that operation only, the others work) or either with /ANYTHING after it.
A batch is so many calls in one request; what is not said of one item fails all of it.
The operations are datakey, encrypt, decrypt, rewrap, verify (decrypt under the context of key
ffffffffffffffff, which no key has), login and lookup. The scenarios are the functions below whose
names begin with `scenario_`; transit, approle and token simply work. Keys are derived from their names alone, so that any instance opens
what another has wrapped, and every context gives another key; the key `missing` does not exist.
"""
import base64
import collections
import hashlib
import hmac
import http.server
import json
import os
import re
import secrets
import socket
import ssl
import sys
import threading
import time

import tls_server

TOKEN = "s.static-token-of-the-fault-server"
SECRET_ID = "secret-id-of-the-fault-server"
BODY_SECRET = "body-secret-of-the-fault-server"  # in every error: must never be repeated
SLOW = 0.1

counts = collections.Counter()
counts_lock = threading.Lock()
newest = 1  # version of the master keys
switched = False
issued = []  # tokens by login, in order


# --- the imitation of transit ---

def derive(key_name, context):
    master = hashlib.sha256(b"fault_kms " + key_name.encode()).digest()
    return hmac.digest(master, context, "sha256")


def wrap(key_name, context, plaintext):
    key = derive(key_name, context)
    nonce = secrets.token_bytes(16)
    pad = hashlib.shake_256(key + nonce).digest(len(plaintext))
    sealed = nonce + bytes(a ^ b for a, b in zip(plaintext, pad))
    tag = hmac.digest(key, sealed, "sha256")
    return "vault:v%d:" % newest + base64.b64encode(sealed + tag).decode()


def unwrap(key_name, context, ciphertext):
    """None: it does not open."""
    version = re.match("vault:v([0-9]+):", ciphertext)
    if version is None or int(version[1]) > newest:
        return None
    data = base64.b64decode(ciphertext[version.end():])
    sealed, tag = data[:-32], data[-32:]
    key = derive(key_name, context)
    if not hmac.compare_digest(hmac.digest(key, sealed, "sha256"), tag):
        return None
    pad = hashlib.shake_256(key + sealed[:16]).digest(len(sealed) - 16)
    return bytes(a ^ b for a, b in zip(sealed[16:], pad))


class Refused(Exception):
    def __init__(self, status, *errors):
        super().__init__(status)
        self.status = status
        self.body = {"errors": list(errors) + [BODY_SECRET]}


def work(call):
    """What a KMS in order answers to a call."""
    if call.operation == "login":
        if call.body.get("secret_id") != SECRET_ID:
            raise Refused(400, "invalid role or secret ID")
        token = "s.issued-%d-%s" % (len(issued), secrets.token_hex(8))
        issued.append(token)
        return {"auth": {"client_token": token, "lease_duration": 3600, "renewable": True}}
    if call.token != TOKEN and call.token not in issued:
        raise Refused(403, "permission denied")
    if call.operation == "lookup":
        return {"data": {"display_name": "fault", "policies": ["default"]}}
    if call.key == "missing":
        raise Refused(400, "encryption key not found")
    if not call.context:
        raise Refused(400, "missing 'context' for key derivation; the key was created using a derived key")
    if call.operation == "datakey":
        dek = secrets.token_bytes(32)
        return {"data": {"ciphertext": wrap(call.key, call.context, dek), "plaintext": b64(dek)}}
    if call.operation == "encrypt":
        plaintext = base64.b64decode(call.body["plaintext"])
        return {"data": {"ciphertext": wrap(call.key, call.context, plaintext)}}
    plaintext = unwrap(call.key, call.context, call.body["ciphertext"])
    if plaintext is None:
        raise Refused(400, "cipher: message authentication failed")
    if call.operation == "rewrap":
        return {"data": {"ciphertext": wrap(call.key, call.context, plaintext)}}
    return {"data": {"plaintext": b64(plaintext)}}


def b64(data):
    return base64.b64encode(data).decode()


# --- scenarios: each answers the call by itself, or returns what work() should have ---

def scenario_stall(call):
    """Never answers."""
    call.wait_for_close()


def scenario_stall_body(call):
    """Answers half, and goes on never."""
    call.send_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b'{"data":')
    call.wait_for_close()


def scenario_slow(call):
    """slow or slow/SECONDS: works after a tenth of a second, or so long."""
    time.sleep(float(call.argument or SLOW))
    return work(call)


def scenario_close(call):
    """Hangs up without an answer."""
    call.hang_up()


def scenario_last(call):
    """Works, and then hangs up without having said so."""
    call.close_connection = True
    return work(call)


def scenario_half(call):
    """Hangs up in the middle of the answer."""
    call.send_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b'{"data":')
    call.hang_up()


def scenario_not_http(call):
    call.send_raw(b"220 mail.test ESMTP ready\r\n")
    call.hang_up()


def scenario_oversize(call):
    """Two gigabytes, in chunks, for as long as somebody reads."""
    block = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    call.send_raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range((2 << 30) // 0x10000):
        call.send_raw(block)
    call.hang_up()


def scenario_redirect(call):
    call.send(307, b"", (("Location", "https://elsewhere.test:8200/v1/x?token=" + BODY_SECRET),))


def scenario_status(call):
    """status/N: HTTP status N."""
    raise Refused(int(call.argument), "of the status asked for")


def scenario_sealed(call):
    raise Refused(503, "Vault is sealed")


def scenario_leak(call):
    """An error that repeats all that was sent."""
    raise Refused(400, "leak", call.token, call.raw_body.decode())


def scenario_uses(call):
    """uses/N: a token works N times under this mount, and is refused from then on."""
    with counts_lock:
        counts[f"{call.mount}:{call.token}"] += 1
        used = counts[f"{call.mount}:{call.token}"]
    if used > int(call.argument):
        raise Refused(403, "permission denied")
    return work(call)


def scenario_empty(call):
    call.send(200, b"")


def scenario_notjson(call):
    call.send(200, b"<html>" + BODY_SECRET.encode() + b"</html>")


def scenario_badjson(call):
    call.send(200, json.dumps(work(call)).encode()[:-1])


def scenario_trailing(call):
    call.send(200, json.dumps(work(call)).encode() + b" {}")


def scenario_deep(call):
    call.send(200, b'{"data":' + b"[" * 20000 + b"]" * 20000 + b"}")


def scenario_duplicate(call):
    """Two answers in one."""
    answer = json.dumps(work(call))
    other = json.dumps(b64(secrets.token_bytes(32)))
    call.send(200, ('{"data":{"plaintext":%s,' % other + answer[len('{"data": {'):]).encode())


def scenario_nodata(call):
    return {"request_id": "1", "warnings": None}


def scenario_noplaintext(call):
    answer = work(call)
    answer["data"].pop("plaintext", None)
    return answer


def scenario_nociphertext(call):
    answer = work(call)
    answer["data"].pop("ciphertext", None)
    return answer


def scenario_notoken(call):
    return {"auth": {"lease_duration": 3600}}


def changed(name, value):
    def scenario(call):
        answer = work(call)
        if name in answer["data"]:
            answer["data"][name] = value() if callable(value) else value
        return answer
    return scenario


scenario_badbase64 = changed("plaintext", "%%% " + BODY_SECRET)
scenario_number = changed("plaintext", 17)
scenario_badversion = changed("ciphertext", "vault:1:" + BODY_SECRET)
scenario_wrongkey = changed("plaintext", lambda: b64(secrets.token_bytes(32)))
scenario_shortkey = changed("plaintext", lambda: b64(secrets.token_bytes(16)))
scenario_longkey = changed("plaintext", lambda: b64(secrets.token_bytes(64)))
scenario_emptykey = changed("plaintext", "")


def scenario_swapped(call):
    """Rewraps or wraps another key than it was given."""
    answer = work(call)
    if "ciphertext" in answer["data"]:
        answer["data"]["ciphertext"] = wrap(call.key, call.context, secrets.token_bytes(32))
    return answer


def scenario_switch(call):
    """switch/SCENARIO: that scenario while the switch is on."""
    if not switched:
        return work(call)
    name, _, call.argument = call.argument.partition("/")
    return globals()["scenario_" + name.replace("-", "_")](call)


def scenario_after(call):
    """after/N/SCENARIO: works N times under this mount, and is SCENARIO from then on."""
    count, _, rest = call.argument.partition("/")
    with counts_lock:
        counts[f"{call.mount}:worked"] += 1
        worked = counts[f"{call.mount}:worked"]
    if worked <= int(count):
        return work(call)
    name, _, call.argument = rest.partition("/")
    return globals()["scenario_" + name](call)


def scenario_unbound(call):
    """Ignores the context, as a key does that is not derived."""
    call.context = b"none"
    return work(call)


def scenario_by_tenant(call):
    """by-tenant/SCENARIO: that scenario for the tenant SCENARIO/2, and for all others it works."""
    name, _, argument = call.argument.partition("/")
    if not call.context.endswith(f"\0{call.argument}/2".encode()):
        return work(call)
    call.argument = argument
    return globals()["scenario_" + name](call)


def scenario_flaky(call):
    """One call in five goes wrong, in one of many ways."""
    if secrets.randbelow(5):
        return work(call)
    wrong = secrets.choice((scenario_stall, scenario_close, scenario_half, scenario_sealed, scenario_notjson,
                            scenario_wrongkey, scenario_shortkey))
    return wrong(call)


def scenario_works(call):
    return work(call)


# --- HTTP ---

class HungUp(Exception):
    pass


class Call(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = None

    def setup(self):
        if isinstance(self.request, ssl.SSLSocket):
            try:
                self.request.do_handshake()
            except ssl.SSLError:
                # the alert is out: let the other side read it, and not a reset
                socket.socket.shutdown(self.request, socket.SHUT_WR)
                while socket.socket.recv(self.request, 65536):
                    pass
                raise
        super().setup()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.raw_body = self.rfile.read(length)
        try:
            scenario = self.read_path()
        except (ValueError, KeyError):
            self.send(404, b'{"errors":[]}')
            return
        self.token = self.headers.get("X-Vault-Token", "")
        try:
            answer = scenario(self) if "batch_input" not in self.body else self.batch(scenario)
        except Refused as refused:
            body = {} if refused.status == 204 else refused.body
            self.send(refused.status, json.dumps(body).encode() if body else b"")
        except HungUp:
            self.close_connection = True
        else:
            if answer is not None:
                self.send(200, json.dumps(answer).encode())

    def batch(self, scenario):
        results = []
        status = 200
        argument = self.argument
        for item in self.body["batch_input"]:
            self.body = item
            self.argument = argument
            self.context = base64.b64decode(item["context"])
            try:
                answer = scenario(self)
                if answer is None:
                    return None
                results.append(answer["data"])
            except Refused as refused:
                if refused.status != 400:
                    raise
                results.append({"error": refused.body["errors"][0]})
                status = 200 if self.operation == "rewrap" else 400
        self.send(status, json.dumps({"data": {"batch_results": results}}).encode())
        return None

    def read_path(self):
        parts = self.path.split("/")
        if parts[1] != "v1":
            raise ValueError
        self.body = json.loads(self.raw_body) if self.raw_body else {}
        self.context = base64.b64decode(self.body.get("context", ""))
        if parts[2] == "auth" and parts[-1] == "login":
            self.mount, self.operation = "/".join(parts[3:-1]), "login"
        elif parts[2:] == ["auth", "token", "lookup-self"]:
            self.mount, self.operation = "token", "lookup"
        elif parts[-3:-1] == ["datakey", "plaintext"]:
            self.mount, self.operation = "/".join(parts[2:-3]), "datakey"
        elif parts[-2] in ("encrypt", "decrypt", "rewrap"):
            self.mount, self.operation = "/".join(parts[2:-2]), parts[-2]
        else:
            raise ValueError
        if self.operation == "decrypt" and b"\0ffffffffffffffff\0" in self.context:
            self.operation = "verify"
        self.key = parts[-1]
        name, _, self.argument = self.mount.partition("/")
        name, _, only = name.partition(".")
        with counts_lock:
            counts[f"{self.mount}:{self.operation}"] += 1
        if name in ("transit", "approle", "token") or only not in ("", self.operation):
            return scenario_works
        return globals()["scenario_" + name.replace("-", "_")]

    def send(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_raw(self, data):
        try:
            self.request.sendall(data)
        except OSError:
            raise HungUp from None

    def wait_for_close(self):
        try:
            while self.request.recv(65536):
                pass
        except OSError:
            pass
        raise HungUp

    def hang_up(self):
        raise HungUp

    def log_message(self, *_):
        pass


class Control(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global newest, switched
        with counts_lock:
            switched = {"/on": True, "/off": False}.get(self.path, switched)
            newest += self.path == "/rotate"
            body = json.dumps(counts).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, handler, context=None):
        super().__init__(("127.0.0.1", 0), handler)
        self.context = context

    def get_request(self):
        sock, address = super().get_request()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context is not None:
            sock = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    def handle_error(self, *_):
        pass  # whoever hangs up does so on purpose

    def begin(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self.server_address[1]


def main():
    certs = sys.argv[1]

    def https(name, **settings):
        return Server(Call, tls_server.tls_context(certs, name, **settings)).begin()

    ports = {
        "good": https("good"),
        "expired": https("expired"),
        "wrong_host": https("wrong_host"),
        "other_ca": https("other"),
        "tls11": https("good", version=ssl.TLSVersion.TLSv1_1),
        "mtls": https("good", ask_client=True),
        "plain": Server(Call).begin(),
        "control": Server(Control).begin(),
    }
    raw = {"silent": tls_server.serve_silence, "cut": tls_server.serve_cut,
           "reset": tls_server.serve_reset}
    for name, serve in raw.items():
        listener = tls_server.bound_socket()
        listener.listen(1024)
        ports[name] = listener.getsockname()[1]
        threading.Thread(target=tls_server.accept_forever, args=(name, serve, listener),
                         daemon=True).start()
    refused = tls_server.bound_socket()  # nobody listens
    ports["refused"] = refused.getsockname()[1]
    full = tls_server.bound_socket()  # connecting hangs
    full.listen(0)
    fillers = tls_server.fill_backlog(full)
    ports["full"] = full.getsockname()[1]

    print(json.dumps(ports), flush=True)
    while sys.stdin.buffer.read(65536):
        pass
    del fillers
    os._exit(0)


if __name__ == "__main__":
    main()
