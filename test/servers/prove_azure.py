"""Proves azure_vault.py by Microsoft's own clients, which must find there what they find at Azure.

    prove_azure.py CERTS

CERTS is a directory made by make_certs.sh. Needs a python with azure-keyvault-keys, azure-keyvault-secrets and
azure-identity: test/install-python VENV azure-keyvault-keys==4.11.3 azure-keyvault-secrets==4.12.0
azure-identity==1.27.0. Prints "N passed, N failed", and what failed.
"""
import base64
import datetime
import hashlib
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import traceback
import urllib.error
import urllib.request

CERTS = os.path.abspath(sys.argv[1])
# requests reads the one, and Python's ssl the other
os.environ["REQUESTS_CA_BUNDLE"] = os.environ["SSL_CERT_FILE"] = os.path.join(CERTS, "ca.pem")

from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.identity import ClientSecretCredential, ManagedIdentityCredential, WorkloadIdentityCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm, SignatureAlgorithm
from azure.keyvault.secrets import SecretClient

# the refusals here are meant
logging.getLogger("azure").setLevel(logging.CRITICAL)

OAEP, A256KW, PS256 = KeyWrapAlgorithm.rsa_oaep_256, KeyWrapAlgorithm.aes_256, SignatureAlgorithm.ps256
NO_RETRY = {"retry_total": 0}
results = []


def check(name, good):
    results.append(bool(good))
    if not good:
        print("FAILED:", name)


def refused(name, status, code, inner, work):
    """One check: the service refuses with this status, code and inner code."""
    try:
        work()
        check(f"{name}: nothing refused", False)
    except HttpResponseError as error:
        told = error.error and (error.error.code, (error.error.innererror or {}).get("code"))
        check(f"{name}: {error.status_code} {told}", (error.status_code, told) == (status, (code, inner)))


def at_service(key_id, credential):
    """A client that does nothing by itself with the public key, so that the service does all."""
    client = CryptographyClient(key_id, credential, verify_challenge_resource=False, **NO_RETRY)
    client._initialized = True
    return client


class Raw:
    """The answer as it came, which the client does not show."""

    def __call__(self, response):
        self.json = json.loads(response.http_response.text())


def prove(server):
    url, control = f"https://127.0.0.1:{server['port']}", f"http://127.0.0.1:{server['control']}"
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def tell(path, method="POST"):
        with no_proxy.open(urllib.request.Request(f"{control}/{path}", method=method)) as answer:
            return json.load(answer)

    def login(client_id, client_secret):
        return ClientSecretCredential(server["tenant"], client_id, client_secret, authority=url,
                                      disable_instance_discovery=True, **NO_RETRY)

    credential = login(server["client_id"], server["client_secret"])
    keys = KeyClient(url, credential, verify_challenge_resource=False, **NO_RETRY)
    dek = secrets.token_bytes(32)

    # the keys of the start
    app = keys.get_key("app")
    check("app is RSA 3072", app.key.kty == "RSA" and len(app.key.n) == 384 and app.key.e == b"\1\0\1")
    check("app wraps", app.key.key_ops == ["wrapKey", "unwrapKey"] and app.properties.enabled)
    check("an unknown key", isinstance(error_of(lambda: keys.get_key("missing")), ResourceNotFoundError))
    refused("its error", 404, "KeyNotFound", None, lambda: keys.get_key("missing"))

    # every version of the protocol
    for version in ("7.4", "7.5", "7.6"):
        old = KeyClient(url, credential, api_version=version, verify_challenge_resource=False)
        check(f"api-version {version}", old.get_key("app").id == app.id)

    # wrap and unwrap
    newest, raw = at_service(f"{url}/keys/app", credential), Raw()
    wrapped = newest.wrap_key(OAEP, dek, raw_response_hook=raw)
    check("wrap without a version tells the version", raw.json["kid"] == app.id)
    check("the wrapped is as long as the key", len(wrapped.encrypted_key) == 384)
    versioned = at_service(app.id, credential)
    check("unwrap", versioned.unwrap_key(OAEP, wrapped.encrypted_key, raw_response_hook=raw).key == dek)
    check("unwrap tells the version", raw.json["kid"] == app.id)
    local = CryptographyClient(app, credential, verify_challenge_resource=False)
    check("the service unwraps what the client wrapped by the public key",
          versioned.unwrap_key(OAEP, local.wrap_key(OAEP, dek).encrypted_key).key == dek)
    for name, garbage in (("garbage", secrets.token_bytes(384)), ("another length", b"x" * 100), ("nothing", b"")):
        refused(f"unwrap {name}", 400, "BadParameter", None, lambda: versioned.unwrap_key(OAEP, garbage))
    check("the most that RSA 3072 wraps", newest.wrap_key(OAEP, b"x" * 318))
    refused("wrap too much", 400, "BadParameter", None, lambda: newest.wrap_key(OAEP, b"x" * 319))
    refused("wrap by an algorithm of other keys", 400, "BadParameter", None, lambda: newest.wrap_key(A256KW, dek))
    refused("sign with a key that wraps", 403, "Forbidden", "KeyOperationForbidden",
            lambda: newest.sign(PS256, hashlib.sha256(b"x").digest()))
    own = at_service(keys.get_key("own").id, credential)
    refused("unwrap with another key", 400, "BadParameter", None, lambda: own.unwrap_key(OAEP, wrapped.encrypted_key))

    # versions
    rotated = keys.rotate_key("app")
    check("rotation makes a version", rotated.properties.version != app.properties.version)
    versions = {key.version for key in keys.list_properties_of_key_versions("app")}
    check("both are listed", versions == {app.properties.version, rotated.properties.version})
    rewrapped = newest.wrap_key(OAEP, dek, raw_response_hook=raw)
    check("wrap uses the newest", raw.json["kid"] == rotated.id)
    check("the older version unwraps its own", versioned.unwrap_key(OAEP, wrapped.encrypted_key).key == dek)
    check("the newer one, too", at_service(rotated.id, credential).unwrap_key(OAEP, rewrapped.encrypted_key).key == dek)
    refused("the older does not unwrap the newer's", 400, "BadParameter", None,
            lambda: versioned.unwrap_key(OAEP, rewrapped.encrypted_key))
    refused("the newest does not unwrap the older's", 400, "BadParameter", None,
            lambda: newest.unwrap_key(OAEP, wrapped.encrypted_key))
    refused("an unknown version", 404, "KeyNotFound", None,
            lambda: at_service(f"{url}/keys/app/{'0' * 32}", credential).unwrap_key(OAEP, wrapped.encrypted_key))

    # disabled: unwrap and sign end, wrap and verify do not
    keys.update_key_properties("app", app.properties.version, enabled=False)
    check("disabled, it can be read", keys.get_key("app", app.properties.version).properties.enabled is False)
    refused("unwrap, disabled", 403, "Forbidden", "KeyDisabled",
            lambda: versioned.unwrap_key(OAEP, wrapped.encrypted_key))
    check("wrap, disabled", versioned.wrap_key(OAEP, dek))
    check("the other version lives",
          at_service(rotated.id, credential).unwrap_key(OAEP, rewrapped.encrypted_key).key == dek)
    keys.update_key_properties("app", app.properties.version, enabled=True)
    check("unwrap, enabled again", versioned.unwrap_key(OAEP, wrapped.encrypted_key).key == dek)

    # expired: wrap and sign end, unwrap and verify do not
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=1)
    keys.update_key_properties("app", rotated.properties.version, expires_on=past)
    refused("wrap, expired", 403, "Forbidden", None, lambda: newest.wrap_key(OAEP, dek))
    check("unwrap, expired", at_service(rotated.id, credential).unwrap_key(OAEP, rewrapped.encrypted_key).key == dek)

    # create
    made = keys.create_rsa_key("made", size=2048, key_operations=["wrapKey", "unwrapKey", "sign", "verify"])
    maker = at_service(made.id, credential)
    check("a new key", maker.unwrap_key(OAEP, maker.wrap_key(OAEP, dek).encrypted_key).key == dek)
    refused("wrap too much by RSA 2048", 400, "BadParameter", None, lambda: maker.wrap_key(OAEP, b"x" * 191))
    check("again makes a version", keys.create_rsa_key("made", size=3072).id != made.id)

    # oct-HSM
    hsm = keys.create_oct_key("made-oct", size=256, hardware_protected=True)
    check("an AES key shows nothing", hsm.key_type == "oct-HSM" and hsm.key.n is None and hsm.key.k is None)
    for key_id in (hsm.id, keys.get_key("hsm").id):
        aes = at_service(key_id, credential)
        by_aes = aes.wrap_key(A256KW, dek).encrypted_key
        check("AES wraps by RFC 3394", len(by_aes) == 40 and aes.unwrap_key(A256KW, by_aes).key == dek)
        refused("AES knows its own", 400, "BadParameter", None, lambda: aes.unwrap_key(A256KW, by_aes[:-1] + b"\0\0"))
        refused("AES wraps blocks", 400, "BadParameter", None, lambda: aes.wrap_key(A256KW, b"x" * 33))

    # sign and verify
    attest = keys.get_key("attest")
    signer, digest = at_service(attest.id, credential), hashlib.sha256(b"report").digest()
    signature = signer.sign(PS256, digest, raw_response_hook=raw).signature
    check("sign tells the version", raw.json["kid"] == attest.id)
    check("verify", signer.verify(PS256, digest, signature).is_valid)
    check("verify another", not signer.verify(PS256, hashlib.sha256(b"other").digest(), signature).is_valid)
    local = CryptographyClient(attest, credential, verify_challenge_resource=False)
    check("the client verifies by the public key", local.verify(PS256, digest, signature).is_valid)
    refused("sign no digest", 400, "BadParameter", None, lambda: signer.sign(PS256, b"x" * 20))
    refused("wrap with a key that signs", 403, "Forbidden", "KeyOperationForbidden", lambda: signer.wrap_key(OAEP, dek))
    tell("disable?attest")
    refused("sign, disabled", 403, "Forbidden", "KeyDisabled", lambda: signer.sign(PS256, digest))
    check("verify, disabled", signer.verify(PS256, digest, signature).is_valid)
    tell("enable?attest")
    tell("expire-key?attest")
    refused("sign, expired", 403, "Forbidden", None, lambda: signer.sign(PS256, digest))
    check("verify, expired", signer.verify(PS256, digest, signature).is_valid)

    # secrets
    vault = SecretClient(url, credential, verify_challenge_resource=False, **NO_RETRY)
    first = vault.get_secret("pw")
    check("the secret", first.value and first.id.startswith(f"{url}/secrets/pw/"))
    check("a new version of it", vault.set_secret("pw", "new").value == vault.get_secret("pw").value == "new")
    check("the older version", vault.get_secret("pw", first.properties.version).value == first.value)
    tell("secret?pw=newer")
    check("and by the control channel", vault.get_secret("pw").value == "newer")
    refused("an unknown secret", 404, "SecretNotFound", None, lambda: vault.get_secret("missing"))

    # rights
    reader = login(**server["public_only_client"])
    check("who may read keys does",
          KeyClient(url, reader, verify_challenge_resource=False).get_key("own").id == own.key_id)
    refused("and no more", 403, "Forbidden", "ForbiddenByRbac",
            lambda: at_service(own.key_id, reader).wrap_key(OAEP, dek))
    refused("and no secret", 403, "Forbidden", "ForbiddenByRbac",
            lambda: SecretClient(url, reader, verify_challenge_resource=False).get_secret("pw"))

    # logins
    def logs_in(name, other):
        check(name, KeyClient(url, other, verify_challenge_resource=False, **NO_RETRY).get_key("own").id == own.key_id)

    def fails_to(name, number, other):
        error = error_of(lambda: other.get_token("https://vault.azure.net/.default"))
        check(f"{name}: {error}", isinstance(error, ClientAuthenticationError) and f"AADSTS{number}:" in str(error))

    fails_to("a wrong secret", 7000215, login(server["client_id"], "wrong"))
    fails_to("an unknown app", 700016, login(server["tenant"], "wrong"))
    error = error_of(lambda: credential.get_token("https://other.azure.net/.default"))
    check("another scope", "AADSTS1002012:" in str(error))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "token")

        def federated(token, client_id=server["client_id"]):
            with open(path, "w", encoding="ascii") as file:
                file.write(token)
            return WorkloadIdentityCredential(tenant_id=server["tenant"], client_id=client_id, token_file_path=path,
                                              authority=url, disable_instance_discovery=True)

        logs_in("a federated token", federated(server["federated_token"]))
        fails_to("one that has ended", 700024, federated(tell("federated-token?-60")["federated_token"]))
        fails_to("one altered", 50013, federated(server["federated_token"][:-8] + "AAAAAAAA"))
        fails_to("one for another app", 700211,
                 federated(server["federated_token"], server["public_only_client"]["client_id"]))
    imds = f"http://127.0.0.1:{server['imds']}"
    os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = imds
    logs_in("the identity of a machine", ManagedIdentityCredential())
    logs_in("an identity by its client id", ManagedIdentityCredential(client_id=server["client_id"]))
    error = error_of(lambda: no_proxy.open(f"{imds}/metadata/identity/oauth2/token?api-version=2018-02-01"
                                           "&resource=https://vault.azure.net"))
    check("IMDS wants its header", isinstance(error, urllib.error.HTTPError) and error.code == 400)
    os.environ["IDENTITY_ENDPOINT"] = f"{imds}/msi/token"
    os.environ["IDENTITY_HEADER"] = server["identity_header"]
    logs_in("the identity of an App Service", ManagedIdentityCredential())
    os.environ["IDENTITY_HEADER"] = "wrong"
    check("and its header", error_of(lambda: ManagedIdentityCredential().get_token("https://vault.azure.net/.default")))

    # tokens
    def ask(token):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{url}/keys/own?api-version=7.4", headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.headers.get("WWW-Authenticate") or ""

    challenge = f'Bearer authorization="{url}/{server["tenant"]}", resource="https://vault.azure.net"'
    token = login(server["client_id"], server["client_secret"]).get_token("https://vault.azure.net/.default").token
    check("a token", ask(token) == (200, ""))
    check("the challenge", ask(None) == (401, challenge))
    check("a token altered", ask(token[:-8] + "AAAAAAAA") == (401, challenge))
    header = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    check("a token unsigned", ask(f"{header}.{token.split('.')[1]}.") == (401, challenge))
    check("somebody else's token", ask(server["federated_token"]) == (401, challenge))
    tell("expire")
    check("a token that has ended", ask(token) == (401, challenge))
    # the client itself goes on with the token that it has, so that the rest needs a new login
    credential = login(server["client_id"], server["client_secret"])
    own = at_service(own.key_id, credential)
    check("a new login helps", own.wrap_key(OAEP, dek))
    tell("token-seconds?1800")
    check("the life of a token", 1790 < login(server["client_id"], server["client_secret"]).get_token_info(
        "https://vault.azure.net/.default").expires_on - datetime.datetime.now().timestamp() < 1810)
    tell("replace-client-secret?another")
    fails_to("the secret that was replaced", 7000215, login(server["client_id"], server["client_secret"]))
    logs_in("the one instead of it", login(server["client_id"], "another"))

    # faults
    key_id = own.key_id
    sealed = own.wrap_key(OAEP, dek).encrypted_key
    for what, status, code, inner in (
            ("throttled", 429, "Throttled", None), ("error", 500, "InternalServerError", None),
            ("unavailable", 503, "ServiceUnavailable", None), ("firewall", 403, "Forbidden", "ForbiddenByFirewall")):
        tell(f"fault?what={what}&times=1")
        refused(what, status, code, inner, lambda: own.unwrap_key(OAEP, sealed))
        check(f"after {what}", own.unwrap_key(OAEP, sealed).key == dek)
    before = tell("counts", "GET")
    tell("fault?what=throttled&times=2&only=unwrapkey")
    patient = CryptographyClient(key_id, credential, verify_challenge_resource=False)
    check("the client tries again when throttled", patient.unwrap_key(OAEP, sealed).key == dek)
    check("which counts", tell("counts", "GET")["unwrapkey"] == before["unwrapkey"] + 3)
    for what, good in (("altered", lambda a: len(a.key) == 32 and a.key != dek),
                       ("length", lambda a: a.key == dek[:-1])):
        tell(f"fault?what={what}&times=1")
        check(what, good(own.unwrap_key(OAEP, sealed)))
    for what in ("wrong-kid", "wrong-version"):
        tell(f"fault?what={what}&times=1")
        own.wrap_key(OAEP, dek, raw_response_hook=raw)
        check(what, raw.json["kid"] != key_id)
    tell("fault?what=not-json&times=1")
    check("not-json", error_of(lambda: own.unwrap_key(OAEP, sealed)))
    tell("fault?what=close&times=1")
    check("close", error_of(lambda: own.unwrap_key(OAEP, sealed)))
    check("the tokens are known", token in tell("tokens", "GET"))


def error_of(work):
    try:
        work()
    except Exception as error:  # whatever it is, the check tells
        return error
    return None


def main():
    folder = os.path.dirname(os.path.abspath(__file__))
    # with the python that the tests use, and its cryptography
    with subprocess.Popen(["/usr/bin/python3", "-B", os.path.join(folder, "azure_vault.py"), CERTS],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            prove(json.loads(server.stdout.readline()))
        except Exception:  # the rest cannot be checked, which is a failure
            traceback.print_exc()
            check("to the end", False)
        server.stdin.close()
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
