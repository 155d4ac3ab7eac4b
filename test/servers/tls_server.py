#!/usr/bin/env python3
"""HTTPS servers that behave well and badly, on loopback.

    tls_server.py CERTS [--events]

CERTS is a directory made by make_certs.sh. Prints one line of JSON, {"good": port, ...}, and serves
until its standard input closes. With --events a line of JSON follows for each thing that a test may
want to wait for; without, nothing does.

Every server that gets as far as HTTP answers by path:
    /echo           the request as JSON, with the connection's and the request's number
    /status/N       status N with an empty body       /bytes/N       N bytes
    /redirect/N     status N to elsewhere.test        /interim       100 and 103, then /echo
    /big            2 GB, announced                   /big-chunked   2 GB, in chunks
    /big-until-close  2 GB, ended by closing          /many-headers  headers without end
    /long-header    one header line without end       /not-http      something else
    /half           ends in the middle of the body    /bad-chunk     breaks the chunked coding
    /silent         never answers                     /stall         stops in the middle of the body
    /close          closes without an answer          /last          answers, then closes unannounced
All but those with N take any suffix, by which an event can be told from others: /silent/17.
"""
import itertools
import json
import os
import select
import socket
import ssl
import struct
import sys
import threading
import warnings

TWO_GB = 2 << 30
BLOCK = bytes(64 * 1024)

events_wanted = False
print_lock = threading.Lock()
connection_numbers = itertools.count(1)


def say(value):
    with print_lock:
        print(json.dumps(value), flush=True)


def event(**what):
    if events_wanted:
        say(what)


# --- HTTP ---

class Connection:
    def __init__(self, server, sock):
        self.server = server
        self.sock = sock
        self.number = next(connection_numbers)
        self.requests = 0
        self.pending = b""

    def read_request(self):
        while b"\r\n\r\n" not in self.pending:
            more = self.sock.recv(65536)
            if not more:
                return None
            self.pending += more
            if self.pending[0] < ord("A"):  # a TLS handshake on the plain port
                self.answer(status=400)
                return None
        head, self.pending = self.pending.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {}
        for line in lines:
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0))
        while len(self.pending) < length:
            more = self.sock.recv(65536)
            if not more:
                return None
            self.pending += more
        body, self.pending = self.pending[:length], self.pending[length:]
        self.requests += 1
        return method, path, headers, body

    def answer(self, body=b"", status=200, headers=()):
        lines = [f"HTTP/1.1 {status} Test", f"Content-Length: {len(body)}", *headers]
        self.sock.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def wait_for_close(self):
        while self.sock.recv(65536):
            pass

    def stream(self, path, head, block, count):
        """Sends until the other side has had enough, and tells how much that was."""
        sent = 0
        try:
            self.sock.sendall(head)
            for _ in range(count):
                self.sock.sendall(block)
                sent += len(block)
        except OSError:
            pass
        event(event="stopped", path=path, sent=sent)
        return False

    def echo(self, method, path, headers, body):
        certificate = getattr(self.sock, "getpeercert", dict)() or {}
        subject = dict(pair for part in certificate.get("subject", ()) for pair in part)
        text = json.dumps({
            "method": method, "path": path, "headers": headers, "body": body.decode("latin-1"),
            "connection": self.number, "request": self.requests,
            "client": subject.get("commonName"),
        }).encode()
        self.answer(b"" if method == "HEAD" else text, headers=("X-Test-Header:  Some Value ",))

    def serve_one(self):
        """False: the connection ends."""
        request = self.read_request()
        if request is None:
            return False
        _, path, _, _ = request
        event(event="request", server=self.server, path=path)
        name, _, argument = path[1:].partition("/")
        blocks = TWO_GB // len(BLOCK)
        ok = b"HTTP/1.1 200 OK\r\n"
        if name == "status":
            self.answer(status=int(argument))
        elif name == "bytes":
            self.answer(b"x" * int(argument))
        elif name == "redirect":
            self.answer(status=int(argument),
                        headers=("Location: https://elsewhere.test:8200/v1/token?secret=1",))
        elif name == "interim":
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n"
                              b"HTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\n")
            self.echo(*request)
        elif name == "big":
            return self.stream(path, ok + b"Content-Length: %d\r\n\r\n" % TWO_GB, BLOCK, blocks)
        elif name == "big-chunked":
            chunk = b"%x\r\n" % len(BLOCK) + BLOCK + b"\r\n"
            return self.stream(path, ok + b"Transfer-Encoding: chunked\r\n\r\n", chunk, blocks)
        elif name == "big-until-close":
            return self.stream(path, ok + b"Connection: close\r\n\r\n", BLOCK, blocks)
        elif name == "many-headers":
            return self.stream(path, ok, b"X-Filler: %s\r\n" % (b"x" * 100), 20_000_000)
        elif name == "long-header":
            return self.stream(path, ok + b"X-Filler: ", b"x" * len(BLOCK), blocks)
        elif name == "not-http":
            self.sock.sendall(b"220 mail.test ESMTP ready\r\n")
            return False
        elif name == "half":
            self.sock.sendall(ok + b"Content-Length: 1000\r\n\r\n" + b"x" * 500)
            return False
        elif name == "bad-chunk":
            self.sock.sendall(ok + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n")
            return False
        elif name == "silent":
            self.wait_for_close()
            return False
        elif name == "stall":
            self.sock.sendall(ok + b"Content-Length: 1000\r\n\r\n" + b"x" * 500)
            event(event="stalled", server=self.server, path=path)
            self.wait_for_close()
            return False
        elif name == "close":
            return False
        else:
            self.echo(*request)
            return name != "last"
        return True

    def serve(self):
        while self.serve_one():
            pass


# --- servers ---

def tls_context(certs, name, **settings):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.path.join(certs, name + ".pem"), os.path.join(certs, name + ".key"))
    if settings.get("ask_client"):
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(os.path.join(certs, "ca.pem"))
    if "version" in settings:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            context.minimum_version = context.maximum_version = settings["version"]
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


def serve_https(context):
    def serve(name, sock):
        tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        try:
            tls.do_handshake()
        except ssl.SSLError:
            # the alert is out: let the other side read it, and not a reset
            socket.socket.shutdown(tls, socket.SHUT_WR)
            while socket.socket.recv(tls, 65536):
                pass
            return
        Connection(name, tls).serve()
        # says goodbye even where the other side still sends
        tls.unwrap()
    return serve


def serve_plain(name, sock):
    Connection(name, sock).serve()


def serve_silence(name, sock):
    sock.recv(65536)
    event(event="hello", server=name)
    while sock.recv(65536):
        pass


def serve_cut(_, sock):
    sock.recv(65536)
    sock.shutdown(socket.SHUT_RDWR)


def serve_reset(_, sock):
    sock.recv(65536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def run_connection(name, serve, sock):
    with sock:
        try:
            serve(name, sock)
        except OSError:
            pass


def accept_forever(name, serve, listener):
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        event(event="accepted", server=name)
        threading.Thread(target=run_connection, args=(name, serve, sock), daemon=True).start()


def bound_socket():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def fill_backlog(listener):
    """Connects until connecting hangs; the connections live as long as the result."""
    fillers = []
    while True:
        filler = socket.socket()
        fillers.append(filler)
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        if not select.select([], [filler], [], 0.3)[1]:
            return fillers


def main():
    global events_wanted
    certs, *rest = sys.argv[1:]
    events_wanted = "--events" in rest
    servers = {
        "good": serve_https(tls_context(certs, "good")),
        "expired": serve_https(tls_context(certs, "expired")),
        "wrong_host": serve_https(tls_context(certs, "wrong_host")),
        "other_ca": serve_https(tls_context(certs, "other")),
        "tls11": serve_https(tls_context(certs, "good", version=ssl.TLSVersion.TLSv1_1)),
        "tls12": serve_https(tls_context(certs, "good", version=ssl.TLSVersion.TLSv1_2)),
        "mtls": serve_https(tls_context(certs, "good", ask_client=True)),
        "mtls12": serve_https(tls_context(certs, "good", ask_client=True,
                                          version=ssl.TLSVersion.TLSv1_2)),
        "plain": serve_plain,       # HTTP without TLS
        "silent": serve_silence,    # accepts, and never shakes hands
        "cut": serve_cut,           # ends the connection in the handshake
        "reset": serve_reset,       # resets it there
    }
    ports = {}
    for name, serve in servers.items():
        listener = bound_socket()
        listener.listen(128)
        ports[name] = listener.getsockname()[1]
        threading.Thread(target=accept_forever, args=(name, serve, listener), daemon=True).start()
    refused = bound_socket()  # nobody listens
    ports["refused"] = refused.getsockname()[1]
    full = bound_socket()  # connecting hangs
    full.listen(0)
    fillers = fill_backlog(full)
    ports["full"] = full.getsockname()[1]

    say(ports)
    while sys.stdin.buffer.read(65536):
        pass
    del fillers
    os._exit(0)


if __name__ == "__main__":
    main()
