#!/usr/bin/python3
"""The Azure services that a client of Key Vault meets, with real keys and real tokens, for tests on loopback.

    azure_vault.py CERTS

CERTS is a directory made by make_certs.sh. Prints one line of JSON and serves until its standard input
closes: `port` (HTTPS: vault, login, identity endpoints), `imds` (the identity endpoints over plain HTTP,
as on a virtual machine), `control` (plain HTTP), `tenant`, `client_id`, `client_secret`,
`federated_token`, `identity_header`, `pw`, `public_only_client` (client_id and client_secret of an app that
may only read keys). Needs python3-cryptography.

    /keys/NAME[/VERSION][/create|rotate|versions|wrapkey|unwrapkey|sign|verify], /secrets/NAME[/VERSION]
    /TENANT/oauth2/v2.0/token with client_secret or client_assertion, and where msal looks that path up
    /metadata/identity/oauth2/token (IMDS), /msi/token (App Service)

Keys at start: app, own (RSA 3072; wrapKey, unwrapKey), attest (RSA 2048; sign, verify), hsm (oct-HSM, as in
a Managed HSM); the secret is pw, its value told. What the vault and the logins refuse comes with BODY_SECRET,
which no client should repeat.

The control channel: GET /counts (requests by what, `unauthorized` for the answers 401, `connections`),
GET /tokens (all that were issued), and by POST
    /expire                   all tokens end            /token-seconds?N      the life of new ones
    /disable?KEY  /enable?KEY  all versions of a key    /expire-key?KEY       their time is over
    /rotate?KEY               a new version             /secret?NAME=VALUE    a new version
    /replace-client-secret?NEW  the old one is refused  /federated-token?SECONDS  answers another one
    /fault?what=WHAT&times=N[&only=OPERATION][&retry-after=SECONDS]
                              the next N answers about keys (all, or those to wrapkey, getkey, …) go wrong:
                              throttled, error, unavailable, firewall, not-json, stall, close, wrong-kid,
                              wrong-version, altered, length; after those asked for before. N = 0: none do
"""
import base64
import collections
import json
import os
import re
import secrets
import sys
import threading
import time
import urllib.parse
import uuid

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

import fault_kms
import tls_server

AUDIENCE = "https://vault.azure.net"
SCOPE = AUDIENCE + "/.default"
EXCHANGE_AUDIENCE = "api://AzureADTokenExchange"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FEDERATED_ISSUER = "https://oidc.envcrypt.test/cluster"
FEDERATED_SUBJECT = "system:serviceaccount:default:postgres"
BODY_SECRET = "body-secret-of-the-azure-server"
# those that clients ask for; Microsoft's newest are dates
API_VERSIONS = ("7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "2025-07-01", "2026-04-01")

OPERATIONS = {"wrapkey": "wrapKey", "unwrapkey": "unwrapKey", "sign": "sign", "verify": "verify"}
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
PREHASHED = utils.Prehashed(hashes.SHA256())


class Refused(Exception):
    def __init__(self, status, body, headers=()):
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


def vault_error(status, code, message, inner=None, headers=()):
    error = {"code": code, "message": f"{message} (Activity ID: {BODY_SECRET})"}
    if inner is not None:
        error["innererror"] = {"code": inner}
    return Refused(status, {"error": error}, headers)


def bad_parameter(message):
    return vault_error(400, "BadParameter", message)


def login_error(status, error, number, text):
    trace, now = str(uuid.uuid4()), time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    return Refused(status, {
        "error": error, "error_codes": [number], "timestamp": now, "trace_id": trace, "correlation_id": trace,
        "error_description": f"AADSTS{number}: {text} Trace ID: {trace} Correlation ID: {BODY_SECRET}",
        "error_uri": f"https://login.microsoftonline.com/error?code={number}",
    })


def identity_error(status, text):
    return Refused(status, {"error": "invalid_request", "error_description": f"{text} {BODY_SECRET}"})


# --- encodings and tokens ---

def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    """Raises ValueError for all that is not base64url without padding."""
    if not isinstance(text, str) or not re.fullmatch("[A-Za-z0-9_-]*", text) or len(text) % 4 == 1:
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def b64_number(number):
    return b64(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def new_rsa(bits):
    return rsa.generate_private_key(65537, bits)


class Signer:
    """Signs JWTs by RS256, and knows its own."""

    def __init__(self):
        self.key = new_rsa(2048)
        self.kid = secrets.token_hex(8)

    def sign(self, claims):
        header = {"typ": "JWT", "alg": "RS256", "kid": self.kid}
        signed = ".".join(b64(json.dumps(part).encode()) for part in (header, claims))
        return signed + "." + b64(self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))

    def claims_of(self, token):
        """None: not signed here."""
        try:
            signed, _, signature = token.rpartition(".")
            header, claims = (json.loads(unb64(part)) for part in signed.split("."))
            if header.get("alg") != "RS256":
                return None
            self.key.public_key().verify(unb64(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
            return claims
        except (ValueError, AttributeError, InvalidSignature):
            return None


# --- keys ---

class Version:
    def __init__(self, name, kty, size, key_ops, attributes):
        self.name, self.id, self.kty, self.size, self.key_ops = name, secrets.token_hex(16), kty, size, key_ops
        self.secret = secrets.token_bytes(size // 8) if kty == "oct-HSM" else new_rsa(size)
        now = int(time.time())
        self.attributes = {"enabled": True, "created": now, "updated": now,
                           "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90, **attributes}

    def kid(self):
        return f"{azure.url}/keys/{self.name}/{self.id}"

    def bundle(self):
        jwk = {"kid": self.kid(), "kty": self.kty, "key_ops": self.key_ops}
        if self.kty == "RSA":
            numbers = self.secret.public_key().public_numbers()
            jwk.update(n=b64_number(numbers.n), e=b64_number(numbers.e))
        return {"key": jwk, "attributes": self.attributes}

    def check_allowed(self, operation):
        """By key_ops, `enabled` and the times; what Azure allows to a key that is disabled or over is deliberate."""
        if operation not in self.key_ops:
            raise vault_error(403, "Forbidden", f"Operation {operation} is not permitted on this key.",
                              "KeyOperationForbidden")
        if not self.attributes["enabled"] and operation in ("unwrapKey", "sign"):
            raise vault_error(403, "Forbidden", f"Operation {operation} is not allowed on a disabled key.",
                              "KeyDisabled")
        now = time.time()
        in_time = self.attributes.get("nbf", 0) <= now < self.attributes.get("exp", now + 1)
        if not in_time and operation in ("wrapKey", "sign"):
            # documented are 403 and Forbidden; an inner code is not, so that no client may count on one
            raise vault_error(403, "Forbidden", f"Operation {operation} is not allowed outside the key's time.")

    def require(self, alg):
        expected = {"RSA-OAEP-256": "RSA", "PS256": "RSA", "A256KW": "oct-HSM"}
        if expected.get(alg) != self.kty:
            raise bad_parameter(f"Key and algorithm are incompatible: {self.kty} and {alg!r}")

    def wrap(self, alg, value):
        self.require(alg)
        try:
            if alg == "A256KW":
                return keywrap.aes_key_wrap(self.secret, value)
            return self.secret.public_key().encrypt(value, OAEP)
        except ValueError:
            raise bad_parameter("The value has a length that the key cannot wrap.") from None

    def unwrap(self, alg, value):
        self.require(alg)
        try:
            if alg == "A256KW":
                return keywrap.aes_key_unwrap(self.secret, value)
            return self.secret.decrypt(value, OAEP)
        except (ValueError, keywrap.InvalidUnwrap):
            raise bad_parameter("The parameter is incorrect.\r\n") from None

    def check_digest(self, alg, digest):
        self.require(alg)
        if len(digest) != 32:
            raise bad_parameter(f"Invalid length of 'value': {len(digest)} bytes. {alg} requires 32 bytes, "
                                "encoded with base64url.")

    def sign(self, alg, digest):
        self.check_digest(alg, digest)
        return self.secret.sign(digest, PSS, PREHASHED)

    def verify(self, alg, digest, signature):
        self.check_digest(alg, digest)
        try:
            self.secret.public_key().verify(signature, digest, PSS, PREHASHED)
            return True
        except InvalidSignature:
            return False


class App:
    def __init__(self, rights):
        self.id, self.object_id = str(uuid.uuid4()), str(uuid.uuid4())
        self.secret, self.rights = secrets.token_urlsafe(30), rights


# --- what there is ---

class Azure:
    def __init__(self):
        self.lock = threading.Lock()
        self.tenant = str(uuid.uuid4())
        self.url = None  # known once the port is
        self.tokens, self.federation = Signer(), Signer()
        self.identity_header = secrets.token_hex(16)
        everything = {"get", "list", "create", "update", "rotate", "getSecret", "setSecret", *OPERATIONS.values()}
        self.app, self.public_only = App(everything), App({"get"})
        self.apps = {app.id: app for app in (self.app, self.public_only)}
        self.generation, self.token_seconds, self.issued = 0, 3600, []
        self.counts, self.faults = collections.Counter(), []
        self.keys, self.secrets = collections.defaultdict(list), collections.defaultdict(list)
        for name in ("app", "own"):
            self.add_key(name, "RSA", 3072, ["wrapKey", "unwrapKey"], {})
        self.add_key("attest", "RSA", 2048, ["sign", "verify"], {})
        self.add_key("hsm", "oct-HSM", 256, ["wrapKey", "unwrapKey"], {})
        self.add_secret("pw", secrets.token_urlsafe(24))

    def add_key(self, name, *rest):
        version = Version(name, *rest)
        with self.lock:
            self.keys[name].append(version)
        return version

    def find_key(self, name, version_id=None):
        for version in reversed(self.keys.get(name, ())):
            if version_id in (None, version.id):
                return version
        which = name if version_id is None else f"{name}/{version_id}"
        raise vault_error(404, "KeyNotFound", f"A key with (name/id) {which} was not found in this key vault.")

    def rotate(self, name):
        newest = self.find_key(name)
        return self.add_key(name, newest.kty, newest.size, newest.key_ops, {})

    def add_secret(self, name, value):
        now, version = int(time.time()), secrets.token_hex(16)
        with self.lock:
            self.secrets[name].append((version, {
                "value": value, "attributes": {"enabled": True, "created": now, "updated": now,
                                               "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90}}))
        return self.find_secret(name, version)

    def find_secret(self, name, version_id=None):
        for version, secret in reversed(self.secrets.get(name, ())):
            if version_id in (None, version):
                return {**secret, "id": f"{self.url}/secrets/{name}/{version}"}
        raise vault_error(404, "SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault.")

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def take_fault(self, operation):
        """What goes wrong with this answer, as (what, retry_after), or None."""
        with self.lock:
            for fault in self.faults:
                if fault["only"] in (None, operation):
                    fault["times"] -= 1
                    if fault["times"] == 0:
                        self.faults.remove(fault)
                    return fault["what"], fault["retry_after"]
        return None

    # tokens

    def issuer(self):
        return f"https://sts.windows.net/{self.tenant}/"

    def issue(self, app):
        """An access token and the seconds that it lives."""
        with self.lock:
            now, seconds, generation = int(time.time()), self.token_seconds, self.generation
        token = self.tokens.sign({
            "aud": AUDIENCE, "iss": self.issuer(), "iat": now, "nbf": now, "exp": now + seconds, "appid": app.id,
            "oid": app.object_id, "sub": app.object_id, "tid": self.tenant, "ver": "1.0",
            "uti": secrets.token_urlsafe(16), "generation": generation})
        with self.lock:
            self.issued.append(token)
        return token, seconds

    def federated_token(self, seconds=86400):
        now = int(time.time())
        return self.federation.sign({"iss": FEDERATED_ISSUER, "sub": FEDERATED_SUBJECT, "aud": [EXCHANGE_AUDIENCE],
                                     "iat": now, "nbf": now, "exp": now + seconds, "jti": secrets.token_hex(8)})


azure = Azure()


# --- faults ---

def change_value(change):
    def fault(answer):
        holder = answer.get("key", answer)
        name = "n" if holder is not answer else "value"
        if isinstance(holder.get(name), str):
            holder[name] = b64(change(unb64(holder[name])))
    return fault


def change_kid(change):
    def fault(answer):
        holder = answer.get("key", answer)
        if "kid" in holder:
            holder["kid"] = change(holder["kid"])
    return fault


REFUSALS = {
    "throttled": (429, "Throttled", "Request was not processed because too many requests were received. "
                  "Reason: VaultRequestTypeLimitReached", None),
    "error": (500, "InternalServerError", "Internal server error.", None),
    "unavailable": (503, "ServiceUnavailable", "The service is unavailable.", None),
    "firewall": (403, "Forbidden", "Client address is not authorized and caller is not a trusted service.\r\n"
                 "Client address: 127.0.0.1\r\n", "ForbiddenByFirewall"),
}
CHANGES = {
    "wrong-kid": change_kid(lambda kid: re.sub("/keys/[^/]+", "/keys/another", kid)),
    "wrong-version": change_kid(lambda kid: re.sub("[^/]+$", secrets.token_hex(16), kid)),
    "altered": change_value(lambda value: bytes([value[0] ^ 1]) + value[1:]),
    "length": change_value(lambda value: value[:-1]),
}
FAULTS = {"not-json", "stall", "close", *REFUSALS, *CHANGES}


# --- HTTP ---

class Request(fault_kms.Call):
    identity_only = False

    def setup(self):
        azure.count("connections")
        super().setup()

    def do_PUT(self):
        self.answer()

    def do_PATCH(self):
        self.answer()

    def answer(self):
        length = self.headers.get("Content-Length")
        self.raw_body = self.rfile.read(int(length or 0))
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        # clients leave the version out by an empty part, and write two slashes
        self.parts = [urllib.parse.unquote(part) for part in url.path.split("/") if part]
        status, headers = 200, []
        try:
            if length is None and self.command != "GET":
                self.close_connection = True  # a body in chunks is not read
                raise Refused(411, {"error": {"code": "LengthRequired", "message": "Length Required"}})
            body = self.route()
        except Refused as refused:
            status, body, headers = refused.status, refused.body, list(refused.headers)
        except fault_kms.HungUp:
            self.close_connection = True
            return
        data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        if status == 401:
            azure.count("unauthorized")
        self.send(status, data, [("Content-Type", "application/json; charset=utf-8"), ("Cache-Control", "no-cache"),
                                 ("x-ms-request-id", str(uuid.uuid4())), *headers])

    def route(self):
        parts, get = self.parts, self.command == "GET"
        if get and parts == ["metadata", "identity", "oauth2", "token"]:
            return self.imds_token()
        if get and parts == ["msi", "token"]:
            return self.app_service_token()
        if not self.identity_only:
            if parts[:1] == ["keys"] and len(parts) > 1:
                return self.keys(parts[1], parts[2:])
            if parts[:1] == ["secrets"] and len(parts) in (2, 3):
                return self.secret(*parts[1:])
            if get and parts == ["common", "discovery", "instance"]:
                return self.instance_discovery()
            if get and parts[1:] == ["v2.0", ".well-known", "openid-configuration"]:
                return self.openid_configuration()
            if self.command == "POST" and parts[1:] == ["oauth2", "v2.0", "token"]:
                return self.token()
        raise Refused(404, {"error": {"code": "NotFound", "message": "no such path"}})

    # the vault

    def authorize(self, what, right):
        """Counts the request, and lets it through if its bearer may do this."""
        azure.count(what)
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise self.unauthorized("AKV10000: Request is missing a Bearer or PoP token.")
        claims = azure.tokens.claims_of(token)
        if claims is None:
            raise self.unauthorized("[AggregatedAuthenticationFailure] Error validating token: 'S2S17001'.")
        if claims["aud"] != AUDIENCE:
            raise self.unauthorized(f"AKV10022: Invalid audience. Expected {AUDIENCE}, found: {claims['aud']}.")
        if claims["iss"] != azure.issuer():
            raise self.unauthorized(f"AKV10032: Invalid issuer. Expected {azure.issuer()}, found {claims['iss']}.")
        if claims["exp"] <= time.time() or claims["generation"] != azure.generation:
            raise self.unauthorized("[TokenExpired] Error validating token: 'S2S12086'.")
        app = azure.apps[claims["appid"]]
        if right not in app.rights:
            raise vault_error(403, "Forbidden", "Caller is not authorized to perform action on resource.\r\n"
                              f"Caller: appid={app.id};oid={app.object_id};iss={azure.issuer()}\r\n"
                              f"Action: '{right}'\r\nAssignment: (not found)\r\n", "ForbiddenByRbac")
        if self.query.get("api-version") not in API_VERSIONS:
            raise bad_parameter(f"The api-version {self.query.get('api-version')!r} is not supported.")

    def unauthorized(self, message):
        challenge = f'Bearer authorization="{azure.url}/{azure.tenant}", resource="{AUDIENCE}"'
        return vault_error(401, "Unauthorized", message, headers=[("WWW-Authenticate", challenge)])

    def json_body(self):
        if not self.headers.get("Content-Type", "").lower().startswith("application/json"):
            raise vault_error(415, "UnsupportedMediaType", "The content type is not application/json.")
        try:
            body = json.loads(self.raw_body)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise bad_parameter("The request body is not a JSON object.")
        return body

    def keys(self, name, rest):
        last = rest[-1].lower() if rest else ""
        works = {("POST", "create"): ("createkey", "create", self.create_key),
                 ("POST", "rotate"): ("rotatekey", "rotate", self.rotate_key),
                 ("GET", "versions"): ("versions", "list", self.list_versions)}
        if self.command == "POST" and last in OPERATIONS and len(rest) <= 2:
            what, right, work = last, OPERATIONS[last], self.use_key
            arguments = (name, rest[0] if len(rest) == 2 else None, last)
        elif (self.command, last) in works and len(rest) == 1:
            (what, right, work), arguments = works[self.command, last], (name,)
        elif self.command == "GET" and len(rest) <= 1:
            what, right, work = "getkey", "get", lambda *which: azure.find_key(*which).bundle()
            arguments = (name, *rest)
        elif self.command == "PATCH" and len(rest) <= 1:
            what, right, work, arguments = "updatekey", "update", self.update_key, (name, *rest)
        else:
            raise Refused(405, {"error": {"code": "MethodNotAllowed", "message": "Method Not Allowed"}})
        self.authorize(what, right)
        fault, retry_after = azure.take_fault(what) or (None, None)
        if fault in REFUSALS:
            status, code, message, inner = REFUSALS[fault]
            headers = [("Retry-After", retry_after)] if fault == "throttled" else []
            raise vault_error(status, code, message, inner, headers)
        if fault == "not-json":
            return b"<html>" + BODY_SECRET.encode() + b"</html>"
        if fault == "stall":
            self.wait_for_close()
        if fault == "close":
            self.hang_up()
        answer = work(*arguments)
        if fault in CHANGES:
            CHANGES[fault](answer)
        return answer

    def use_key(self, name, version_id, what):
        version = azure.find_key(name, version_id)
        body = self.json_body()
        if not isinstance(body.get("alg"), str):
            raise bad_parameter("Property 'alg' is required")
        values = []
        for field in ("digest", "value") if what == "verify" else ("value",):
            try:
                values.append(unb64(body.get(field)))
            except ValueError:
                raise bad_parameter(f"Property '{field}' has invalid value") from None
            if not values[-1]:
                raise bad_parameter(f"Property '{field}' is required")
        version.check_allowed(OPERATIONS[what])
        work = {"wrapkey": version.wrap, "unwrapkey": version.unwrap, "sign": version.sign, "verify": version.verify}
        result = work[what](body["alg"], *values)
        return {"value": result} if what == "verify" else {"kid": version.kid(), "value": b64(result)}

    def read_attributes(self, body):
        attributes = body.get("attributes") or {}
        types = {"enabled": bool, "exp": int, "nbf": int}
        if not isinstance(attributes, dict):
            raise bad_parameter("Property 'attributes' has invalid value")
        read = {name: attributes[name] for name in types if name in attributes}
        for name, value in read.items():
            if type(value) is not types[name]:  # isinstance() takes a bool for an int
                raise bad_parameter(f"Property '{name}' has invalid value")
        return read

    def read_key_ops(self, body, default):
        key_ops = body.get("key_ops") or default
        if not set(key_ops) <= {"encrypt", "decrypt", *OPERATIONS.values()}:
            raise bad_parameter("Property 'key_ops' has invalid value")
        return key_ops

    def create_key(self, name):
        body = self.json_body()
        if not re.fullmatch("[0-9A-Za-z-]{1,127}", name):
            raise bad_parameter("The request URI contains an invalid name")
        sizes = {"RSA": (2048, 3072, 4096), "oct-HSM": (256,)}.get(body.get("kty"))
        if sizes is None:
            raise bad_parameter("Property 'kty' has invalid value")
        size = body.get("key_size") or sizes[0]
        if size not in sizes:
            raise bad_parameter("Property 'key_size' has invalid value")
        default = ["encrypt", "decrypt", "wrapKey", "unwrapKey"]
        key_ops = self.read_key_ops(body, default + ["sign", "verify"] if body["kty"] == "RSA" else default)
        return azure.add_key(name, body["kty"], size, key_ops, self.read_attributes(body)).bundle()

    def rotate_key(self, name):
        return azure.rotate(name).bundle()

    def list_versions(self, name):
        azure.find_key(name)
        return {"value": [{"kid": version.kid(), "attributes": version.attributes} for version in azure.keys[name]],
                "nextLink": None}

    def update_key(self, name, version_id=None):
        version, body = azure.find_key(name, version_id), self.json_body()
        attributes, key_ops = self.read_attributes(body), self.read_key_ops(body, version.key_ops)
        version.attributes.update(attributes, updated=int(time.time()))
        version.key_ops = key_ops
        return version.bundle()

    def secret(self, name, version_id=None):
        if self.command == "GET":
            self.authorize("secret", "getSecret")
            return azure.find_secret(name, version_id)
        if self.command != "PUT" or version_id is not None:
            raise Refused(405, {"error": {"code": "MethodNotAllowed", "message": "Method Not Allowed"}})
        self.authorize("setsecret", "setSecret")
        value = self.json_body().get("value")
        if not isinstance(value, str):
            raise bad_parameter("Property 'value' is required")
        return azure.add_secret(name, value)

    # login

    def token(self):
        azure.count("token")
        if not self.headers.get("Content-Type", "").lower().startswith("application/x-www-form-urlencoded"):
            raise login_error(400, "invalid_request", 900144, "The request body must contain 'grant_type'.")
        form = dict(urllib.parse.parse_qsl(self.raw_body.decode("latin-1"), keep_blank_values=True))
        if self.parts[0] != azure.tenant:
            raise login_error(400, "invalid_request", 90002, f"Tenant '{self.parts[0]}' not found.")
        if form.get("grant_type") != "client_credentials":
            raise login_error(400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type.")
        app = azure.apps.get(form.get("client_id"))
        if app is None:
            raise login_error(400, "unauthorized_client", 700016, "Application with identifier "
                              f"'{form.get('client_id')}' was not found in the directory.")
        if form.get("scope") != SCOPE:
            raise login_error(400, "invalid_scope", 1002012, f"The value for scope {form.get('scope')} is not valid.")
        if "client_assertion" in form:
            self.check_assertion(app, form)
        elif "client_secret" not in form:
            raise login_error(401, "invalid_client", 7000218, "The request body must contain 'client_assertion' or "
                              "'client_secret'.")
        elif form["client_secret"] != app.secret:
            raise login_error(401, "invalid_client", 7000215, "Invalid client secret provided. Ensure the secret being "
                              "sent in the request is the client secret value, not the client secret ID, for a secret "
                              f"added to app '{app.id}'.")
        token, seconds = azure.issue(app)
        return {"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": token}

    def check_assertion(self, app, form):
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            raise login_error(400, "invalid_request", 900144, "The request body must contain 'client_assertion_type'.")
        claims = azure.federation.claims_of(form["client_assertion"])
        if claims is None:
            raise login_error(401, "invalid_client", 50013, "Assertion failed signature validation.")
        if claims["iss"] != FEDERATED_ISSUER or app is not azure.app:
            raise login_error(401, "invalid_client", 700211, "No matching federated identity record found for "
                              f"presented assertion issuer '{claims['iss']}'.")
        if claims["sub"] != FEDERATED_SUBJECT:
            raise login_error(401, "invalid_client", 700213, "No matching federated identity record found for "
                              f"presented assertion subject '{claims['sub']}'.")
        audiences = [claims["aud"]] if isinstance(claims["aud"], str) else claims["aud"]
        if EXCHANGE_AUDIENCE not in audiences:
            raise login_error(401, "invalid_client", 700212, "No matching federated identity record found for "
                              f"presented assertion audience '{claims['aud']}'.")
        if claims["exp"] <= time.time():
            raise login_error(401, "invalid_client", 700024, "Client assertion is not within its valid time range.")

    def instance_discovery(self):
        azure.count("discovery")
        return {"tenant_discovery_endpoint": f"{azure.url}/{azure.tenant}/v2.0/.well-known/openid-configuration",
                "api-version": "1.1", "metadata": []}

    def openid_configuration(self):
        azure.count("discovery")
        if self.parts[0] != azure.tenant:
            raise login_error(400, "invalid_tenant", 90002, f"Tenant '{self.parts[0]}' not found.")
        base = f"{azure.url}/{azure.tenant}"
        return {"issuer": base + "/v2.0", "token_endpoint": base + "/oauth2/v2.0/token",
                "authorization_endpoint": base + "/oauth2/v2.0/authorize",
                "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
                "response_types_supported": ["code"], "id_token_signing_alg_values_supported": ["RS256"]}

    # managed identities

    def identity_token(self, api_version):
        if self.query.get("api-version") != api_version or self.query.get("resource") != AUDIENCE:
            raise identity_error(400, "AADSTS500011: the api-version or the resource is wrong")
        if self.query.get("client_id", azure.app.id) != azure.app.id:
            raise identity_error(400, "Identity not found")
        token, seconds = azure.issue(azure.app)
        # both services write numbers as strings
        return {"access_token": token, "expires_on": str(int(time.time()) + seconds), "resource": AUDIENCE,
                "token_type": "Bearer", "client_id": azure.app.id}, seconds

    def imds_token(self):
        azure.count("msi")
        if self.headers.get("Metadata", "").lower() != "true":
            raise identity_error(400, "Required metadata header not specified")
        answer, seconds = self.identity_token("2018-02-01")
        now = int(time.time())
        return {**answer, "expires_in": str(seconds), "ext_expires_in": str(seconds), "not_before": str(now),
                "refresh_token": ""}

    def app_service_token(self):
        azure.count("msi-app-service")
        if self.headers.get("X-IDENTITY-HEADER") != azure.identity_header:
            raise Refused(401, {"statusCode": 401, "message": f"X-IDENTITY-HEADER is missing or wrong {BODY_SECRET}"})
        # the real one has no expires_in
        return self.identity_token("2019-08-01")[0]


class IdentityRequest(Request):
    identity_only = True


class Control(fault_kms.Call):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        try:
            self.send(200, json.dumps(self.work(self.command + url.path, url.query)).encode())
        except (LookupError, ValueError, Refused) as problem:
            self.send(400, json.dumps({"error": repr(problem)}).encode())

    def work(self, what, raw_query):
        argument = urllib.parse.unquote(raw_query)
        if what == "GET/counts":
            with azure.lock:
                return dict(azure.counts)
        elif what == "GET/tokens":
            with azure.lock:
                return list(azure.issued)
        elif what == "POST/expire":
            azure.generation += 1
        elif what == "POST/token-seconds":
            azure.token_seconds = int(argument)
        elif what in ("POST/disable", "POST/enable", "POST/expire-key"):
            azure.find_key(argument)
            change = {"exp": int(time.time()) - 60} if what == "POST/expire-key" else {"enabled": what == "POST/enable"}
            for version in azure.keys[argument]:
                version.attributes.update(change)
        elif what == "POST/rotate":
            return azure.rotate(argument).bundle()
        elif what == "POST/secret":
            ((name, value),) = urllib.parse.parse_qsl(raw_query, strict_parsing=True)
            return azure.add_secret(name, value)
        elif what == "POST/replace-client-secret":
            azure.app.secret = argument
        elif what == "POST/federated-token":
            return {"federated_token": azure.federated_token(int(argument))}
        elif what == "POST/fault":
            query = dict(urllib.parse.parse_qsl(raw_query, strict_parsing=True))
            if query["what"] not in FAULTS or int(query["times"]) < 0:
                raise ValueError(raw_query)
            fault = {"what": query["what"], "times": int(query["times"]), "only": query.get("only"),
                     "retry_after": query.get("retry-after", "1")}
            with azure.lock:
                azure.faults = [*azure.faults, fault] if fault["times"] else []
        else:
            raise LookupError(what)
        return {}


def main():
    certs = sys.argv[1]
    port = fault_kms.Server(Request, tls_server.tls_context(certs, "good"))
    azure.url = f"https://127.0.0.1:{port.server_address[1]}"
    print(json.dumps({
        "port": port.begin(), "imds": fault_kms.Server(IdentityRequest).begin(),
        "control": fault_kms.Server(Control).begin(), "tenant": azure.tenant, "client_id": azure.app.id,
        "client_secret": azure.app.secret, "federated_token": azure.federated_token(),
        "identity_header": azure.identity_header, "pw": azure.find_secret("pw")["value"],
        "public_only_client": {"client_id": azure.public_only.id, "client_secret": azure.public_only.secret},
    }), flush=True)
    while sys.stdin.buffer.read(65536):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
