#!/usr/bin/env python3
"""The services of Google Cloud that a client of its KMS meets, on loopback: they check what Google's check.

    gcp_kms.py CERTS

CERTS is a directory made by make_certs.sh. Prints one line of JSON and serves until its standard input closes:
`port` (TLS: everything), `metadata` (plain HTTP as in a virtual machine: only /computeMetadata), `control`, `key` (the
name of key `app` in ring `ring` of project `test`; `own` lies beside it), `service_account` and `external_account`
(credential files; the file of the latter's subject token is the caller's to write), `subject_token`. prove_gcp.py
shows that Google's own client is content with all this.

The control port speaks plain HTTP; arguments are divided by "&":
    GET  /counts                  requests by METHOD:WHAT; encrypt, decrypt, key, admin, token, metadata, sts,
                                  impersonate, secret
    POST /expire                  no access token is valid any more
    POST /token-seconds?N         the life of new ones, 3599 otherwise
    POST /deny?WHO, /permit?WHO   takes or gives the right to keys and secrets: service-account, metadata,
                                  impersonated, or federated, which begins without
    POST /version?KEY&N&STATE     changes the state of a version of key app or own
    POST /new-version?KEY         makes one and makes it the primary; answers with its number
    POST /secret?NAME&VALUE       a new version of a secret
    POST /clock-skew?SECONDS      the clock that judges JWTs, and that of the Date headers, is ahead by so much
    POST /delay?MILLISECONDS      every answer of the KMS takes so long
    POST /fault?WHAT&N&WHERE      the next N (1) answers of WHERE are wrong; /fault?none ends that. WHAT: an HTTP
                                  status, not-json, or one of FAULTS. WHERE: a name of those counted, or kms (the
                                  default): encrypt and decrypt. A fault of FAULTS knows its place.
"""
import base64
import collections
import hashlib
import http.server
import json
import os
import re
import secrets
import sys
import threading
import time
import urllib.parse

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import fault_kms
import tls_server

BODY_SECRET = "body-secret-of-the-google-server"  # in every error that a fault makes: must never be repeated
PROJECT_NUMBER = "123456789012"
RING = "projects/test/locations/global/keyRings/ring"
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
CLOUD_KMS = "https://www.googleapis.com/auth/cloudkms"
IAM = "https://www.googleapis.com/auth/iam"
GOOGLE_TOKEN_URL = "https://oauth2.googleapis.com/token"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
JWT_TYPE = "urn:ietf:params:oauth:token-type:jwt"
AUDIENCE = (f"//iam.googleapis.com/projects/{PROJECT_NUMBER}/locations/global/workloadIdentityPools/pool"
            "/providers/provider")
EMAIL = "envcrypt@test.iam.gserviceaccount.com"
IMPERSONATED = "envcrypt-impersonated@test.iam.gserviceaccount.com"
METADATA_EMAIL = PROJECT_NUMBER + "-compute@developer.gserviceaccount.com"
MAX_SKEW, MAX_LIFE = 300, 3600
LIMIT = 64 * 1024

STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
            409: "ALREADY_EXISTS", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 500: "INTERNAL", 501: "UNIMPLEMENTED",
            503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
# Google's own client wants the numbers of names, and sends them
ENUMS = {
    "state": ("CRYPTO_KEY_VERSION_STATE_UNSPECIFIED", "ENABLED", "DISABLED", "DESTROYED", "DESTROY_SCHEDULED"),
    "purpose": ("CRYPTO_KEY_PURPOSE_UNSPECIFIED", "ENCRYPT_DECRYPT"),
    "algorithm": ("CRYPTO_KEY_VERSION_ALGORITHM_UNSPECIFIED", "GOOGLE_SYMMETRIC_ENCRYPTION"),
    "protectionLevel": ("PROTECTION_LEVEL_UNSPECIFIED", "SOFTWARE"),
}

lock = threading.Lock()  # of all that follows
counts = collections.Counter()
rings, keys, secret_values = {}, {}, {}
tokens = {}  # access token: (principal, scopes, end of its life)
permitted = {"service-account", "metadata", "impersonated"}
faults = []  # [what, how many are left, where]
settings = {"token_seconds": 3599, "skew": 0}
account_key = rsa.generate_private_key(65537, 2048)
account_key_id = secrets.token_hex(20)
subject_token = ""
port = 0


class Refused(Exception):
    def __init__(self, http_status, body, headers=()):
        super().__init__(http_status)
        self.http_status, self.body, self.headers = http_status, body, headers


def google_error(http_status, message, *details, status=None, headers=()):
    error = {"code": http_status, "message": message, "status": status or STATUSES.get(http_status, "UNKNOWN")}
    if details:
        error["details"] = details
    return Refused(http_status, {"error": error}, headers)


def oauth_error(error, description):
    return Refused(400, {"error": error, "error_description": description})


def info(reason, **metadata):
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com",
            "metadata": metadata}


def make_crc_table():
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        yield value


CRC_TABLE = tuple(make_crc_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def b64(data):
    return base64.b64encode(data).decode()


def unb64(text):
    """Standard or URL-safe, padded or not, as the JSON of protobuf has it."""
    text = text.rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def now():
    return time.time() + settings["skew"]


def rfc3339(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# --- keys ---

class Version:
    def __init__(self, key, number):
        self.name, self.state = f"{key.name}/cryptoKeyVersions/{number}", "ENABLED"
        self.created = rfc3339(time.time())
        self.aead = AESGCM(secrets.token_bytes(32))
        # a ciphertext of Google's begins with a protobuf field that leads to the version
        self.mark = b"\x0a\x24\x00" + hashlib.sha512(self.name.encode()).digest()[:35]

    def describe(self):
        return {"name": self.name, "state": self.state, "protectionLevel": "SOFTWARE",
                "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION", "createTime": self.created, "generateTime": self.created}

    def must_be_enabled(self):
        if self.state != "ENABLED":
            violation = {"type": "KEY_" + self.state, "subject": self.name}
            raise google_error(400, f"{self.name} is not enabled, current state is: {self.state}.",
                               {"@type": "type.googleapis.com/google.rpc.PreconditionFailure",
                                "violations": [violation]},
                               status="FAILED_PRECONDITION")

    def seal(self, plaintext, aad):
        nonce = secrets.token_bytes(12)
        return self.mark + nonce + self.aead.encrypt(nonce, plaintext, self.name.encode() + b"\0" + aad)

    def open(self, ciphertext, aad):
        nonce, sealed = ciphertext[len(self.mark):][:12], ciphertext[len(self.mark) + 12:]
        return self.aead.decrypt(nonce, sealed, self.name.encode() + b"\0" + aad)


class Key:
    def __init__(self, name):
        self.name, self.versions, self.primary = name, {}, None
        self.created = rfc3339(time.time())

    def add_version(self):
        number = len(self.versions) + 1
        version = self.versions[str(number)] = Version(self, number)
        return version

    def describe(self):
        described = {"name": self.name, "purpose": "ENCRYPT_DECRYPT", "createTime": self.created,
                     "versionTemplate": {"protectionLevel": "SOFTWARE", "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION"},
                     "destroyScheduledDuration": "2592000s"}
        if self.primary is not None:
            described["primary"] = self.primary.describe()
        return described


def find_key(name):
    if name not in keys:
        raise google_error(404, f"CryptoKey {name} not found.")
    return keys[name]


def find_version(key_name, number):
    versions = find_key(key_name).versions
    if number not in versions:
        raise google_error(404, f"CryptoKeyVersion {key_name}/cryptoKeyVersions/{number} not found.")
    return versions[number]


def bytes_field(call, name):
    value = call.body.get(name) or ""
    try:
        data = unb64(value)
    except (ValueError, AttributeError):
        # so does Google: an error may repeat what was sent
        raise google_error(400, f"Invalid value at '{name}' (TYPE_BYTES), Base64 decoding failed for "
                                f"\"{value}\"") from None
    if len(data) > LIMIT and name != "ciphertext":
        raise google_error(400, f"{name} is too long: {len(data)} bytes, at most {LIMIT} are allowed.")
    checksum = call.body.get(name + "Crc32c")
    if checksum is None:
        return data, False
    try:
        checksum = int(checksum)
    except (ValueError, TypeError):
        raise google_error(400, f"Invalid value at '{name}_crc32c' (TYPE_INT64), \"{checksum}\"") from None
    if checksum != crc32c(data):
        snake = re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name)
        raise google_error(400, f"The checksum in field {snake}_crc32c did not match the data in field {snake}.")
    return data, True


def without_defaults(answer):
    """Google leaves false, 0 and empty fields out (but not those of the wrapper types, as the checksums are)."""
    return {name: value for name, value in answer.items() if value is not False and value != ""}


def encrypt(call, key_name, number):
    call.authorize("cloudkms.cryptoKeyVersions.useToEncrypt", key_name)
    plaintext, plaintext_verified = bytes_field(call, "plaintext")
    aad, aad_verified = bytes_field(call, "additionalAuthenticatedData")
    version = find_version(key_name, number) if number else find_key(key_name).primary
    if version is None:
        raise google_error(400, f"{key_name} has no primary version.", status="FAILED_PRECONDITION")
    version.must_be_enabled()
    ciphertext = version.seal(plaintext, aad)
    return without_defaults({
        "name": version.name, "ciphertext": b64(ciphertext), "ciphertextCrc32c": str(crc32c(ciphertext)),
        "verifiedPlaintextCrc32c": plaintext_verified, "verifiedAdditionalAuthenticatedDataCrc32c": aad_verified,
        "protectionLevel": "SOFTWARE"})


def decrypt(call, key_name):
    call.authorize("cloudkms.cryptoKeyVersions.useToDecrypt", key_name)
    ciphertext, _ = bytes_field(call, "ciphertext")
    aad, _ = bytes_field(call, "additionalAuthenticatedData")
    key = find_key(key_name)
    version = next((each for each in key.versions.values() if ciphertext.startswith(each.mark)), None)
    if version is None:
        raise google_error(400, "Decryption failed: verify that 'name' refers to the correct CryptoKey.")
    version.must_be_enabled()
    try:
        plaintext = version.open(ciphertext, aad)
    except (InvalidTag, ValueError):
        raise google_error(400, "Decryption failed: the ciphertext is invalid.") from None
    return without_defaults({"plaintext": b64(plaintext), "plaintextCrc32c": str(crc32c(plaintext)),
                             "usedPrimary": version is key.primary, "protectionLevel": "SOFTWARE"})


def get_ring(call, name):
    call.authorize("cloudkms.keyRings.get", name)
    if name not in rings:
        raise google_error(404, f"KeyRing {name} not found.")
    return rings[name]


def create_ring(call, location):
    call.authorize("cloudkms.keyRings.create", location)
    name = f"{location}/keyRings/{call.new_id('keyRingId')}"
    if name in rings:
        raise google_error(409, f"KeyRing {name} already exists.")
    rings[name] = {"name": name, "createTime": rfc3339(time.time())}
    return rings[name]


def create_key(call, ring):
    call.authorize("cloudkms.cryptoKeys.create", ring)
    if ring not in rings:
        raise google_error(404, f"KeyRing {ring} not found.")
    name = f"{ring}/cryptoKeys/{call.new_id('cryptoKeyId')}"
    if name in keys:
        raise google_error(409, f"CryptoKey {name} already exists.")
    if call.enum("purpose") != "ENCRYPT_DECRYPT":
        raise google_error(501, "only purpose ENCRYPT_DECRYPT is known here")
    key = keys[name] = Key(name)
    if call.query.get("skipInitialVersionCreation") != "true":
        key.primary = key.add_version()
    return key.describe()


def get_key(call, name):
    call.authorize("cloudkms.cryptoKeys.get", name)
    return find_key(name).describe()


def get_version(call, key_name, number):
    call.authorize("cloudkms.cryptoKeyVersions.get", key_name)
    return find_version(key_name, number).describe()


def create_version(call, key_name):
    call.authorize("cloudkms.cryptoKeyVersions.create", key_name)
    return find_key(key_name).add_version().describe()


def update_primary(call, key_name):
    call.authorize("cloudkms.cryptoKeys.update", key_name)
    key = find_key(key_name)
    key.primary = find_version(key_name, str(call.body.get("cryptoKeyVersionId", "")))
    return key.describe()


def update_version(call, key_name, number):
    call.authorize("cloudkms.cryptoKeyVersions.update", key_name)
    version = find_version(key_name, number)
    state = call.enum("state")
    if call.query.get("updateMask") != "state" or state not in ("ENABLED", "DISABLED"):
        raise google_error(400, "only 'state' can be updated here, between ENABLED and DISABLED")
    if version.state not in ("ENABLED", "DISABLED"):
        raise google_error(400, f"{version.name} is {version.state}.", status="FAILED_PRECONDITION")
    version.state = state
    return version.describe()


def destroy_version(call, key_name, number, verb):
    call.authorize(f"cloudkms.cryptoKeyVersions.{verb}", key_name)
    version = find_version(key_name, number)
    before, after = (("ENABLED", "DISABLED"), "DESTROY_SCHEDULED") if verb == "destroy" else (
        ("DESTROY_SCHEDULED",), "DISABLED")
    if version.state not in before:
        raise google_error(400, f"{version.name} is {version.state}.", status="FAILED_PRECONDITION")
    version.state = after
    return version.describe()


def access_secret(call, project, name, number):
    # the caller may name the project by its id, the answer names it by its number
    resource = f"projects/{PROJECT_NUMBER}/secrets/{name}"
    call.authorize("secretmanager.versions.access", f"{resource}/versions/{number}", "secretmanager", {CLOUD_PLATFORM})
    values = secret_values.get(name, []) if project in ("test", PROJECT_NUMBER) else []
    if not values:
        raise google_error(404, f"Secret [{resource}] not found or has no versions.")
    if number == "latest":
        number = str(len(values))
    if not number.isdigit() or not 1 <= int(number) <= len(values):
        raise google_error(404, f"Secret Version [{resource}/versions/{number}] not found.")
    data = values[int(number) - 1]
    return {"name": f"{resource}/versions/{number}", "payload": {"data": b64(data), "dataCrc32c": str(crc32c(data))}}


# --- credentials ---

def new_token(principal, scopes, seconds):
    token = "ya29.test." + secrets.token_urlsafe(48)
    tokens[token] = (principal, frozenset(scopes), time.time() + seconds)
    return token


def read_jwt(token):
    """The claims; ValueError for what is no JWT, InvalidSignature where it is not the account's."""
    head, claims, signature = token.split(".")
    header, claims_read = json.loads(unb64(head)), json.loads(unb64(claims))
    if header.get("alg") != "RS256" or header.get("kid", account_key_id) != account_key_id:
        raise InvalidSignature
    signed = f"{head}.{claims}".encode()
    account_key.public_key().verify(unb64(signature), signed, padding.PKCS1v15(), hashes.SHA256())
    return claims_read


def is_timely(claims):
    issued, end = claims.get("iat"), claims.get("exp")
    return (isinstance(issued, int) and isinstance(end, int) and issued < end <= issued + MAX_LIFE
            and issued <= now() + MAX_SKEW and end > now() - MAX_SKEW)


def give_token(call):
    form = call.form()
    if form.get("grant_type") != JWT_BEARER:
        raise oauth_error("unsupported_grant_type", f"Invalid grant_type: {form.get('grant_type', '')}")
    try:
        claims = read_jwt(form.get("assertion", ""))
    except (ValueError, AttributeError):
        raise oauth_error("invalid_grant", "Bad Request") from None
    except InvalidSignature:
        raise oauth_error("invalid_grant", "Invalid JWT Signature.") from None
    if claims.get("iss") != EMAIL:
        raise oauth_error("invalid_grant", "Invalid grant: account not found")
    # Google's Python client names Google here whatever token_uri says, others name token_uri
    if claims.get("aud") not in (f"https://127.0.0.1:{port}/token", GOOGLE_TOKEN_URL):
        raise oauth_error("invalid_grant", "Invalid JWT: Failed audience check.")
    if not is_timely(claims):
        raise oauth_error("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes) and in a "
                                            "reasonable timeframe. Check your iat and exp values in the JWT claim.")
    if claims.get("sub", EMAIL) != EMAIL:
        raise Refused(401, {"error": "unauthorized_client", "error_description":
                            "Client is unauthorized to retrieve access tokens using this method, or client not "
                            "authorized for any of the scopes requested."})
    scopes = str(claims.get("scope", "")).split()
    if not {CLOUD_KMS, CLOUD_PLATFORM} & set(scopes):
        raise oauth_error("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
    seconds = settings["token_seconds"]
    return {"access_token": new_token("service-account", scopes, seconds), "expires_in": seconds,
            "token_type": "Bearer"}


def exchange_token(call):
    form = call.form()
    if form.get("grant_type") != TOKEN_EXCHANGE:
        raise oauth_error("unsupported_grant_type", "Invalid value for \"grant_type\".")
    if form.get("requested_token_type") != ACCESS_TOKEN:
        raise oauth_error("invalid_request", "Invalid value for \"requested_token_type\".")
    if not form.get("audience", "").startswith("//iam.googleapis.com/"):
        raise oauth_error("invalid_request", "Invalid value for \"audience\". This value should be the full resource "
                           "name of the Identity Provider.")
    if form["audience"] != AUDIENCE:
        raise oauth_error("invalid_target", "The target service indicated by the \"audience\" parameters is invalid. "
                           "This might either be because the pool or provider is disabled or deleted or because it "
                           "doesn't exist.")
    if form.get("subject_token_type") != JWT_TYPE:
        raise oauth_error("invalid_request", "Invalid value for \"subject_token_type\".")
    if form.get("subject_token") != subject_token:
        raise oauth_error("invalid_grant", "Error connecting to the given credential's issuer.")
    scopes = form.get("scope", "").split()
    if not scopes:
        raise oauth_error("invalid_scope", "Invalid OAuth scope: scope is required.")
    seconds = settings["token_seconds"]
    return {"access_token": new_token("federated", scopes, seconds), "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer", "expires_in": seconds}


def impersonate(call, email):
    principal = call.authenticate("iamcredentials", {CLOUD_PLATFORM, IAM})
    if principal != "federated" or email != IMPERSONATED:
        permission = "iam.serviceAccounts.getAccessToken"
        raise google_error(403, f"Permission '{permission}' denied on resource (or it may not exist).",
                           info("IAM_PERMISSION_DENIED", permission=permission))
    scopes = call.body.get("scope")
    if not isinstance(scopes, list) or not scopes:
        raise google_error(400, "Request contains an invalid argument: scope.")
    life = re.fullmatch(r"(\d+)s", call.body.get("lifetime") or "3600s")
    if not life or not 0 < int(life[1]) <= MAX_LIFE:
        raise google_error(400, "Request contains an invalid argument: lifetime.")
    seconds = min(settings["token_seconds"], int(life[1]))
    return {"accessToken": new_token("impersonated", scopes, seconds), "expireTime": rfc3339(time.time() + seconds)}


def metadata(call, path):
    if call.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in call.headers:
        raise Refused(403, b"<!DOCTYPE html><p>Your client does not have permission to get URL from this server."
                           b" Missing Metadata-Flavor:Google header.")
    account = {"aliases": ["default"], "email": METADATA_EMAIL, "scopes": [CLOUD_PLATFORM]}
    folder = "instance/service-accounts/"
    texts = {"project/project-id": "test", "universe/universe-domain": "googleapis.com",
             folder: f"default/\n{METADATA_EMAIL}/\n"}
    for name in ("default", METADATA_EMAIL):
        texts[f"{folder}{name}/email"] = METADATA_EMAIL
        texts[f"{folder}{name}/scopes"] = CLOUD_PLATFORM + "\n"
        if path == f"{folder}{name}/token":
            seconds = settings["token_seconds"]
            scopes = call.query.get("scopes", CLOUD_PLATFORM).split(",")
            return {"access_token": new_token("metadata", scopes, seconds), "expires_in": seconds,
                    "token_type": "Bearer"}
        if path.rstrip("/") == f"{folder}{name}" and call.query.get("recursive") == "true":
            return account
    if path not in texts:
        raise Refused(404, b"<!DOCTYPE html><p>The requested URL was not found on this server.")
    return texts[path].encode()


# --- HTTP ---

P = r"projects/[^/:]+/locations/[^/:]+"
K = P + r"/keyRings/[^/:]+/cryptoKeys/[^/:]+"
V = f"({K})/cryptoKeyVersions/([^/:]+)"
AAD_FIELDS = ("additionalAuthenticatedData", "additionalAuthenticatedDataCrc32c")
# METHOD, path, name in the counts, what answers, names that its JSON may have (None: no JSON)
ROUTES = tuple((method, re.compile(path), what, work, fields) for method, path, what, work, fields in (
    ("POST", f"/v1/({K})(?:/cryptoKeyVersions/([^/:]+))?:encrypt", "encrypt", encrypt,
     ("name", "plaintext", "plaintextCrc32c") + AAD_FIELDS),
    ("POST", f"/v1/({K}):decrypt", "decrypt", decrypt, ("name", "ciphertext", "ciphertextCrc32c") + AAD_FIELDS),
    ("GET", f"/v1/({K})", "key", get_key, None),
    ("GET", f"/v1/{V}", "key", get_version, None),
    ("GET", f"/v1/({P}/keyRings/[^/:]+)", "key", get_ring, None),
    ("POST", f"/v1/({P})/keyRings", "admin", create_ring, ("name",)),
    ("POST", f"/v1/({P}/keyRings/[^/:]+)/cryptoKeys", "admin", create_key,
     ("name", "purpose", "versionTemplate", "labels")),
    ("POST", f"/v1/({K})/cryptoKeyVersions", "admin", create_version, ("name", "state")),
    ("POST", f"/v1/({K}):updatePrimaryVersion", "admin", update_primary, ("name", "cryptoKeyVersionId")),
    ("PATCH", f"/v1/{V}", "admin", update_version, ("name", "state")),
    ("POST", f"/v1/{V}:(destroy|restore)", "admin", destroy_version, ("name",)),
    ("POST", "/token", "token", give_token, None),
    ("POST", "/v1/token", "sts", exchange_token, None),
    ("POST", "/v1/projects/-/serviceAccounts/([^/:]+):generateAccessToken", "impersonate", impersonate,
     ("name", "delegates", "scope", "lifetime")),
    ("GET", "/v1/projects/([^/]+)/secrets/([^/]+)/versions/([^/:]+):access", "secret", access_secret, None),
    ("GET", "/computeMetadata/v1/(.*)", "metadata", metadata, None),
))


def changed(name, change):
    def fault(answer):
        if "payload" in answer:
            answer = answer["payload"]
        answer[name] = change(answer[name])
    return fault


def removed(name):
    return lambda answer: answer.pop(name, None)


def off_by_one(checksum):
    return str((int(checksum) + 1) & 0xFFFFFFFF)


FAULTS = {
    "ciphertext-crc": ("encrypt", changed("ciphertextCrc32c", off_by_one)),
    "no-ciphertext-crc": ("encrypt", removed("ciphertextCrc32c")),
    "unverified": ("encrypt", removed("verifiedPlaintextCrc32c")),
    "unverified-aad": ("encrypt", removed("verifiedAdditionalAuthenticatedDataCrc32c")),
    "version-name": ("encrypt", changed("name", lambda name: name.replace("/cryptoKeys/", "/cryptoKeys/not-"))),
    "plaintext-crc": ("decrypt", changed("plaintextCrc32c", off_by_one)),
    "no-plaintext-crc": ("decrypt", removed("plaintextCrc32c")),
    "data-crc": ("secret", changed("dataCrc32c", off_by_one)),
}


def take_fault(what):
    for fault in faults:
        if fault[2] == what or fault[2] == "kms" and what in ("encrypt", "decrypt"):
            fault[1] -= 1
            if fault[1] == 0:
                faults.remove(fault)
            return fault[0]
    return None


def with_numbers(value):
    if isinstance(value, list):
        return [with_numbers(each) for each in value]
    if isinstance(value, dict):
        return {name: ENUMS[name].index(each) if name in ENUMS else with_numbers(each)
                for name, each in value.items()}
    return value


class Call(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    only = "/"  # what the path must begin with

    def answer(self):
        length = self.headers.get("Content-Length")
        self.raw_body = self.rfile.read(int(length or 0))
        path, _, query = self.path.partition("?")
        path = urllib.parse.unquote(path)
        self.query = dict(urllib.parse.parse_qsl(query))
        try:
            if self.command != "GET" and length is None:
                self.close_connection = True
                raise Refused(411, b"<!DOCTYPE html><p>POST requests require a Content-length header.")
            if path.startswith("/v1/projects"):
                time.sleep(settings.get("delay", 0))
            with lock:
                body = self.work(path)
        except Refused as refused:
            self.send(refused.http_status, refused.body, refused.headers)
        else:
            self.send(200, body)

    do_GET = do_POST = do_PATCH = answer

    def work(self, path):
        for method, pattern, what, work, fields in ROUTES:
            match = pattern.fullmatch(path)
            if match and method == self.command and path.startswith(self.only):
                break
        else:
            if path == "/" and self.only != "/":
                return b"computeMetadata/\n"  # by which a client finds out that it is in a virtual machine
            raise Refused(404, b"<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>")
        counts[f"{method}:{what}"] += 1
        fault = take_fault(what)
        if fault == "not-json":
            return b"<html>" + BODY_SECRET.encode() + b"</html>"
        if fault is not None and fault.isdigit():
            raise google_error(int(fault), f"A fault that the test asked for. {BODY_SECRET}")
        self.read_json(fields)
        answer = work(self, *match.groups())
        if fault is not None:
            FAULTS[fault][1](answer)
        return with_numbers(answer) if self.query.get("$alt", "").endswith("enum-encoding=int") else answer

    def read_json(self, fields):
        self.body = {}
        if fields is None:
            return
        if self.headers.get_content_type() != "application/json":
            raise google_error(400, "Invalid JSON payload received. It must be sent as application/json.")
        try:
            self.body = json.loads(self.raw_body or b"{}")
        except ValueError:
            raise google_error(400, "Invalid JSON payload received. Unknown name or malformed JSON.") from None
        if not isinstance(self.body, dict):
            raise google_error(400, "Invalid JSON payload received. Not an object.")
        unknown = [name for name in self.body if name not in fields]
        if unknown:
            description = f'Invalid JSON payload received. Unknown name "{unknown[0]}": Cannot find field.'
            raise google_error(400, description, {"@type": "type.googleapis.com/google.rpc.BadRequest",
                                                  "fieldViolations": [{"description": description}]})

    def form(self):
        if self.headers.get_content_type() != "application/x-www-form-urlencoded":
            raise oauth_error("invalid_request", "Could not parse the body: its type must be a form's.")
        return dict(urllib.parse.parse_qsl(self.raw_body.decode("latin-1")))

    def enum(self, name):
        value = self.body.get(name)
        return ENUMS[name][value] if isinstance(value, int) and value < len(ENUMS[name]) else value

    def new_id(self, parameter):
        if not re.fullmatch("[a-zA-Z0-9_-]{1,63}", self.query.get(parameter, "")):
            raise google_error(400, f"{parameter} must match [a-zA-Z0-9_-]{{1,63}}.")
        return self.query[parameter]

    def authenticate(self, service, scopes):
        """Who asks; refuses who is unknown or has none of the scopes."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        challenge = ("WWW-Authenticate", 'Bearer realm="https://accounts.google.com/"')
        if scheme.lower() != "bearer" or not token:
            raise google_error(401, "Request is missing required authentication credential. Expected OAuth 2 access "
                               "token, login cookie or other valid authentication credential.",
                               info("CREDENTIALS_MISSING"), headers=(challenge,))
        principal, has, end = tokens.get(token) or self.read_self_signed(token, service) or (None, (), 0)
        if end < time.time():
            raise google_error(401, "Request had invalid authentication credentials. Expected OAuth 2 access token, "
                               "login cookie or other valid authentication credential.",
                               info("ACCESS_TOKEN_TYPE_UNSUPPORTED"),
                               headers=((challenge[0], challenge[1] + ', error="invalid_token"'),))
        if not scopes & set(has):
            raise google_error(403, "Request had insufficient authentication scopes.",
                               info("ACCESS_TOKEN_SCOPE_INSUFFICIENT", service=service + ".googleapis.com"))
        return principal

    def read_self_signed(self, token, service):
        """Google takes a JWT of a service account's, for its own audience or with a scope, in place of a token."""
        try:
            claims = read_jwt(token)
        except (ValueError, AttributeError, InvalidSignature):
            return None
        own = claims.get("aud") in (f"https://{service}.googleapis.com/", f"https://127.0.0.1:{port}/")
        by_account = claims.get("iss") == claims.get("sub") == EMAIL
        if not by_account or not is_timely(claims) or not own and "aud" in claims:
            return None
        return "service-account", (CLOUD_PLATFORM,) if own else claims.get("scope", "").split(), time.time() + 1

    def authorize(self, permission, resource, service="cloudkms", scopes=frozenset((CLOUD_PLATFORM, CLOUD_KMS))):
        if self.authenticate(service, scopes) not in permitted:
            raise google_error(403, f"Permission '{permission}' denied on resource '{resource}' (or it may not exist).",
                               info("IAM_PERMISSION_DENIED", permission=permission, resource=resource))

    def send(self, status, body, headers=()):
        """JSON in chunks, as Google sends it."""
        is_json = isinstance(body, dict)
        data = json.dumps(body, indent=2).encode() + b"\n" if is_json else body
        of_metadata = self.path.startswith("/computeMetadata/") or self.only != "/"
        is_page = data.startswith(b"<")
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=UTF-8" if is_page else "application/text" if not is_json
                         else "application/json" if of_metadata else "application/json; charset=UTF-8")
        if of_metadata and status == 200:
            self.send_header("Metadata-Flavor", "Google")
        for name, value in headers:
            self.send_header(name, value)
        if is_json and not of_metadata:
            self.send_header("Transfer-Encoding", "chunked")
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def date_time_string(self, timestamp=None):
        return super().date_time_string(now() if timestamp is None else timestamp)

    def log_message(self, *_):
        pass


class Metadata(Call):
    only = "/computeMetadata/"


class Control(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(counts if self.path == "/counts" else None)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name, _, query = self.path.partition("?")
        arguments = [urllib.parse.unquote(each) for each in query.split("&")] if query else []
        try:
            with lock:
                answer = getattr(self, "post" + name.replace("/", "_").replace("-", "_"))(*arguments) or {}
        except (AttributeError, KeyError, TypeError, ValueError):
            answer = None
        self.answer(answer)

    def post_expire(self):
        tokens.clear()

    def post_token_seconds(self, seconds):
        settings["token_seconds"] = int(seconds)

    def post_clock_skew(self, seconds):
        settings["skew"] = int(seconds)

    def post_delay(self, milliseconds):
        settings["delay"] = int(milliseconds) / 1000

    def post_permit(self, principal):
        permitted.add(principal)

    def post_deny(self, principal):
        permitted.remove(principal)

    def post_version(self, key, number, state):
        keys[f"{RING}/cryptoKeys/{key}"].versions[number].state = ENUMS["state"][ENUMS["state"].index(state)]

    def post_new_version(self, key):
        key = keys[f"{RING}/cryptoKeys/{key}"]
        key.primary = key.add_version()
        return {"version": len(key.versions)}

    def post_secret(self, name, value):
        secret_values.setdefault(name, []).append(value.encode())

    def post_fault(self, what, count="1", where="kms"):
        if what == "none":
            faults.clear()
            return
        known = {"kms"}.union(each[2] for each in ROUTES)
        if what in FAULTS:
            where = FAULTS[what][0]
        elif what != "not-json" and not what.isdigit() or where not in known:
            raise ValueError
        faults.append([what, int(count), where])

    def answer(self, value):
        with lock:
            body = json.dumps(value if value is not None else {"error": "not understood"}).encode()
        self.send_response(400 if value is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    global port, subject_token
    rings[RING] = {"name": RING, "createTime": rfc3339(time.time())}
    for name in ("app", "own"):
        key = keys[f"{RING}/cryptoKeys/{name}"] = Key(f"{RING}/cryptoKeys/{name}")
        key.primary = key.add_version()
    # looks as a Kubernetes token does
    subject_token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (
        b'{"alg":"RS256","typ":"JWT"}', b'{"sub":"system:serviceaccount:test:envcrypt"}', secrets.token_bytes(256)))
    port = fault_kms.Server(Call, tls_server.tls_context(sys.argv[1], "good")).begin()
    here = f"https://127.0.0.1:{port}"
    pem = account_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                    serialization.NoEncryption()).decode()
    certs_url = "https://www.googleapis.com/robot/v1/metadata/x509/" + urllib.parse.quote(EMAIL, safe="")
    print(json.dumps({
        "port": port,
        "metadata": fault_kms.Server(Metadata).begin(),
        "control": fault_kms.Server(Control).begin(),
        "key": f"{RING}/cryptoKeys/app",
        "service_account": {
            "type": "service_account", "project_id": "test", "private_key_id": account_key_id, "private_key": pem,
            "client_email": EMAIL, "client_id": "100000000000000000001",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth", "token_uri": here + "/token",
            "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
            "client_x509_cert_url": certs_url, "universe_domain": "googleapis.com"},
        "external_account": {
            "universe_domain": "googleapis.com", "type": "external_account", "audience": AUDIENCE,
            "subject_token_type": JWT_TYPE, "token_url": here + "/v1/token",
            "service_account_impersonation_url":
                f"{here}/v1/projects/-/serviceAccounts/{IMPERSONATED}:generateAccessToken",
            "credential_source": {"file": "", "format": {"type": "text"}}},
        "subject_token": subject_token,
    }), flush=True)
    while sys.stdin.buffer.read(65536):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
