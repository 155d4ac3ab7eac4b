#!/usr/bin/env python3
"""Shows by Google's own client that gcp_kms.py does as Google does.

    prove_gcp.py CERTS

CERTS is a directory made by make_certs.sh. Run by a Python that has google-cloud-kms==3.18.0 (test/install-python).
Says what fails, and ends with "N passed, N failed".
"""
import datetime
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
CERTS = sys.argv[1]
passed = failed = 0


def check(what, is_so):
    global passed, failed
    if is_so:
        passed += 1
    else:
        failed += 1
        print("not so:", what)


def fails(what, error, text, work, *arguments, **named):
    """One check: the call is refused, by this exception or Google status, and with this in its text."""
    try:
        work(*arguments, **named)
    except Exception as refused:
        # over REST the client's exceptions tell the HTTP status alone
        as_meant = (refused.response.json()["error"]["status"] == error
                    if isinstance(refused, exceptions.GoogleAPICallError) and isinstance(error, str)
                    else not isinstance(error, str) and isinstance(refused, error))
        check(f"{what} (it says: {refused!r})", as_meant and text in str(refused))
    else:
        check(what + " (it was not refused)", False)


os.environ.update(REQUESTS_CA_BUNDLE=f"{CERTS}/ca.pem", SSL_CERT_FILE=f"{CERTS}/ca.pem", NO_PROXY="127.0.0.1")
server = subprocess.Popen(["/usr/bin/python3", "-B", f"{HERE}/gcp_kms.py", CERTS], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE)
about = json.loads(server.stdout.readline())
# read when the modules below are loaded
os.environ["GCE_METADATA_HOST"] = os.environ["GCE_METADATA_IP"] = f"127.0.0.1:{about['metadata']}"

import google.auth.transport.requests
import requests
from google.api_core import exceptions
from google.auth import compute_engine, crypt, identity_pool, jwt
from google.auth.compute_engine import _metadata
from google.auth.exceptions import OAuthError, RefreshError
from google.cloud import kms
from google.oauth2 import _client, credentials, service_account

CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
CLOUD_KMS = "https://www.googleapis.com/auth/cloudkms"
url = f"https://127.0.0.1:{about['port']}"
account = about["service_account"]
transport = google.auth.transport.requests.Request()


def control(path, method="POST"):
    request = urllib.request.Request(f"http://127.0.0.1:{about['control']}{path}", method=method)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def count(what):
    return control("/counts", "GET").get(what, 0)


def client(who):
    return kms.KeyManagementServiceClient(transport="rest", credentials=who,
                                          client_options={"api_endpoint": f"127.0.0.1:{about['port']}"})


def of_account(file, *scopes):
    return service_account.Credentials.from_service_account_info(file, scopes=scopes)


def of_pool(file, scope):
    return identity_pool.Credentials.from_info(file, scopes=[scope])


def opens(who):
    return client(who).get_crypto_key(name=about["key"]).name == about["key"]


def token_only(who):
    """Only the token: given a service account, the client would sign a JWT itself and ask for no token."""
    who.refresh(transport)
    return client(credentials.Credentials(who.token))


def look(token):
    """What the KMS says, where the client would look for a new token."""
    return requests.get(f"{url}/v1/{about['key']}", headers={"Authorization": "Bearer " + token}, timeout=10)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def seal(using, name, plaintext, aad=b""):
    return using.encrypt(request={
        "name": name, "plaintext": plaintext, "plaintext_crc32c": crc32c(plaintext),
        "additional_authenticated_data": aad, "additional_authenticated_data_crc32c": crc32c(aad)}, retry=None)


def unseal(using, name, ciphertext, aad=b"", **more):
    return using.decrypt(retry=None, request={
        "name": name, "ciphertext": ciphertext, "ciphertext_crc32c": crc32c(ciphertext),
        "additional_authenticated_data": aad, "additional_authenticated_data_crc32c": crc32c(aad), **more})


def prove_login():
    who = of_account(account, CLOUD_KMS)
    using = token_only(who)
    check("a service account gets a token", count("POST:token") == 1 and who.token.startswith("ya29."))
    left = (who.expiry - datetime.datetime.utcnow()).total_seconds()
    check("that lives for an hour", 3500 < left < 3700)
    primary = using.get_crypto_key(name=about["key"]).primary
    check("which opens the KMS", primary.name == about["key"] + "/cryptoKeyVersions/1")
    check("a JWT that the client signs itself does too", opens(of_account(account)))
    check("without another token", count("POST:token") == 1)

    other = of_account({**account, "client_email": "no@test"}, CLOUD_KMS)
    fails("an unknown account", RefreshError, "account not found", other.refresh, transport)
    fails("no scope", RefreshError, "invalid_scope", of_account(account).refresh, transport)
    control("/clock-skew?400")
    who.refresh(transport)
    check("a clock that is behind does no harm", who.valid)
    control("/clock-skew?-400")
    fails("a clock that is ahead", RefreshError, "reasonable timeframe", who.refresh, transport)
    control("/clock-skew?4000")
    fails("a clock that is far behind", RefreshError, "reasonable timeframe", who.refresh, transport)
    control("/clock-skew?0")

    def grant(key=account["private_key"], **claims):
        now = int(datetime.datetime.now().timestamp())
        claims = {"iss": account["client_email"], "aud": account["token_uri"], "scope": CLOUD_KMS, "iat": now,
                  "exp": now + 3600, **claims}
        signed = jwt.encode(crypt.RSASigner.from_string(key), claims)
        return _client.jwt_grant(transport, account["token_uri"], signed)

    check("the token's own URL may be the audience", grant()[0].startswith("ya29."))
    fails("another audience", RefreshError, "Failed audience check", grant, aud=url + "/other")
    fails("more than an hour", RefreshError, "short-lived", grant, iat=int(datetime.datetime.now().timestamp()) - 100)
    forged = subprocess.run(["openssl", "genrsa", "2048"], capture_output=True, check=True, text=True).stdout
    fails("another's signature", RefreshError, "Invalid JWT Signature", grant, forged)

    control("/token-seconds?3599")
    control("/expire")
    answer = look(who.token)
    check("a token that has expired", answer.status_code == 401
          and answer.json()["error"]["status"] == "UNAUTHENTICATED"
          and 'error="invalid_token"' in answer.headers["WWW-Authenticate"])
    check("no token", look("").status_code == 401)
    using = token_only(who)
    control("/deny?service-account")
    fails("no permission", "PERMISSION_DENIED", "cryptoKeyVersions.useToEncrypt", seal, using, about["key"], b"x")
    fails("no permission to know what there is", "PERMISSION_DENIED", "or it may not exist", seal, using,
          about["key"] + "x", b"x")
    control("/permit?service-account")
    check("permission again", seal(using, about["key"], b"x").verified_plaintext_crc32c)


def prove_external(folder):
    path = f"{folder}/subject_token"
    external = {**about["external_account"], "credential_source": {"file": path, "format": {"type": "text"}}}
    with open(path, "w", encoding="ascii") as file:
        file.write(about["subject_token"])
    who = of_pool(external, CLOUD_KMS)
    check("workload identity federation opens the KMS", opens(who))
    check("by an exchange and an impersonation", count("POST:sts") == 1 and count("POST:impersonate") == 1)
    direct = of_pool({**external, "service_account_impersonation_url": None}, CLOUD_PLATFORM)
    fails("the federated identity itself", "PERMISSION_DENIED", "denied on resource", opens, direct)
    control("/permit?federated")
    check("until it is permitted", opens(direct))
    with open(path, "a", encoding="ascii") as file:
        file.write("x")
    other = of_pool(external, CLOUD_KMS)
    fails("another subject token", OAuthError, "invalid_grant", other.refresh, transport)
    with open(path, "w", encoding="ascii") as file:
        file.write(about["subject_token"])
    other = of_pool({**external, "audience": external["audience"] + "x"}, CLOUD_KMS)
    fails("another audience", OAuthError, "invalid_target", other.refresh, transport)


def prove_metadata():
    check("the client finds itself in a virtual machine", _metadata.ping(transport))
    who = compute_engine.Credentials()
    check("and may use the KMS", opens(who))
    control("/expire")
    before = count("GET:metadata")
    check("after a 401 the client gets itself a new token", opens(who) and count("GET:metadata") > before)
    check("under the machine's account", who.service_account_email.endswith("@developer.gserviceaccount.com"))
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{about['metadata']}/computeMetadata/v1/instance/service-accounts/"
                               "default/token")
        check("the metadata header is required", False)
    except urllib.error.HTTPError as refused:
        check("the metadata header is required", refused.code == 403)


def prove_keys(using):
    ring = using.create_key_ring(parent="projects/test/locations/global", key_ring_id="proof", key_ring={})
    check("a key ring is made", ring.name.endswith("/keyRings/proof") and ring.create_time.timestamp() > 0)
    check("and found", using.get_key_ring(name=ring.name) == ring)
    fails("the same again", "ALREADY_EXISTS", "already exists", using.create_key_ring,
          parent="projects/test/locations/global", key_ring_id="proof", key_ring={})
    purpose = kms.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT
    key = using.create_crypto_key(parent=ring.name, crypto_key_id="key", crypto_key={"purpose": purpose})
    first = key.primary.name
    check("a key is made", key.purpose == purpose and first == key.name + "/cryptoKeyVersions/1")
    other = using.create_crypto_key(parent=ring.name, crypto_key_id="other", crypto_key={"purpose": purpose})

    sealed = seal(using, key.name, b"plaintext", b"context")
    check("encrypt names the version", sealed.name == first)
    check("and the checksum", sealed.ciphertext_crc32c == crc32c(sealed.ciphertext))
    check("and has seen the plaintext's", sealed.verified_plaintext_crc32c)
    check("and the context's", sealed.verified_additional_authenticated_data_crc32c)
    check("and its protection", sealed.protection_level == kms.ProtectionLevel.SOFTWARE)
    bare = using.encrypt(name=key.name, plaintext=b"plaintext")
    check("no checksum sent, none verified", not bare.verified_plaintext_crc32c
          and not bare.verified_additional_authenticated_data_crc32c)
    opened = unseal(using, key.name, sealed.ciphertext, b"context")
    check("decrypt", opened.plaintext == b"plaintext" and opened.plaintext_crc32c == crc32c(b"plaintext"))
    check("with the primary version", opened.used_primary)
    check("nothing in it", unseal(using, key.name, seal(using, key.name, b"").ciphertext).plaintext == b"")
    whole = bytes(range(256)) * 256
    check("64 KiB", unseal(using, key.name, seal(using, key.name, whole, whole).ciphertext, whole).plaintext == whole)
    fails("more than that", "INVALID_ARGUMENT", "too long", seal, using, key.name, whole + b"x")

    def opens_not(what, name, ciphertext, aad, text="Decryption failed"):
        fails(what, "INVALID_ARGUMENT", text, unseal, using, name, ciphertext, aad)

    opens_not("another context", key.name, sealed.ciphertext, b"Context")
    opens_not("no context", key.name, sealed.ciphertext, b"")
    opens_not("another key", other.name, sealed.ciphertext, b"context", "correct CryptoKey")
    opens_not("garbage", key.name, b"garbage", b"context")
    for cut in (1, 40, 60):
        opens_not("a piece", key.name, sealed.ciphertext[:-cut], b"context")
    fails("a wrong checksum", "INVALID_ARGUMENT",
          "The checksum in field ciphertext_crc32c did not match the data in field ciphertext.",
          unseal, using, key.name, sealed.ciphertext, b"context", ciphertext_crc32c=1)
    fails("a key that is not there", "NOT_FOUND", "not found", seal, using, key.name + "x", b"x")

    second = using.create_crypto_key_version(parent=key.name, crypto_key_version={}).name
    check("a new version is not yet the primary", seal(using, key.name, b"x").name == first)
    key = using.update_crypto_key_primary_version(name=key.name, crypto_key_version_id="2")
    check("then it is", key.primary.name == second and seal(using, key.name, b"x").name == second)
    opened = unseal(using, key.name, sealed.ciphertext, b"context")
    check("the old one still opens", opened.plaintext == b"plaintext" and not opened.used_primary)
    check("and still encrypts where it is named", seal(using, first, b"x").name == first)

    states = kms.CryptoKeyVersion.CryptoKeyVersionState

    def set_state(name, state):
        return using.update_crypto_key_version(crypto_key_version={"name": name, "state": state},
                                               update_mask={"paths": ["state"]})

    check("a version is disabled", set_state(first, states.DISABLED).state == states.DISABLED)
    fails("and opens nothing", "FAILED_PRECONDITION", "is not enabled, current state is: DISABLED", unseal, using,
          key.name, sealed.ciphertext, b"context")
    check("enabled", set_state(first, states.ENABLED).state == states.ENABLED)
    check("it opens again", unseal(using, key.name, sealed.ciphertext, b"context").plaintext == b"plaintext")
    set_state(second, states.DISABLED)
    fails("a disabled primary", "FAILED_PRECONDITION", "current state is: DISABLED", seal, using, key.name, b"x")
    set_state(second, states.ENABLED)
    check("a version is destroyed", using.destroy_crypto_key_version(name=first).state == states.DESTROY_SCHEDULED)
    fails("and opens nothing", "FAILED_PRECONDITION", "current state is: DESTROY_SCHEDULED", unseal, using, key.name,
          sealed.ciphertext, b"context")
    check("restored", using.restore_crypto_key_version(name=first).state == states.DISABLED)
    check("it is found", using.get_crypto_key_version(name=first).state == states.DISABLED)


def prove_control(using, token):
    control("/new-version?app")
    sealed = seal(using, about["key"], b"x")
    check("control makes a version the primary", sealed.name == about["key"] + "/cryptoKeyVersions/2")
    control("/version?app&2&DESTROYED")
    fails("and destroys it", "FAILED_PRECONDITION", "current state is: DESTROYED", unseal, using, about["key"],
          sealed.ciphertext)
    control("/version?app&2&ENABLED")
    for status, error in ((429, "RESOURCE_EXHAUSTED"), (500, "INTERNAL"),
                          (503, "UNAVAILABLE")):
        control(f"/fault?{status}&2")
        fails(f"fault {status}", error, "body-secret", seal, using, about["key"], b"x")
        fails(f"fault {status} again", error, "body-secret", unseal, using, about["key"], sealed.ciphertext)
        check(f"and no more of {status}", unseal(using, about["key"], sealed.ciphertext).plaintext == b"x")
    control("/fault?ciphertext-crc")
    wrong = seal(using, about["key"], b"x")
    check("fault ciphertext-crc", wrong.ciphertext_crc32c != crc32c(wrong.ciphertext))
    control("/fault?no-ciphertext-crc")
    check("fault no-ciphertext-crc", seal(using, about["key"], b"x").ciphertext_crc32c is None)
    control("/fault?plaintext-crc")
    check("a fault waits for its operation", seal(using, about["key"], b"x").verified_plaintext_crc32c)
    check("fault plaintext-crc", unseal(using, about["key"], sealed.ciphertext).plaintext_crc32c != crc32c(b"x"))
    control("/fault?no-plaintext-crc")
    check("fault no-plaintext-crc", unseal(using, about["key"], sealed.ciphertext).plaintext_crc32c is None)
    control("/fault?unverified")
    check("fault unverified", not seal(using, about["key"], b"x").verified_plaintext_crc32c)
    control("/fault?unverified-aad")
    check("fault unverified-aad", not seal(using, about["key"], b"x").verified_additional_authenticated_data_crc32c)
    control("/fault?version-name")
    check("fault version-name", "/cryptoKeys/not-app/" in seal(using, about["key"], b"x").name)
    control("/fault?not-json")
    fails("fault not-json", Exception, "", seal, using, about["key"], b"x")
    control("/fault?503&1&token")
    again = requests.post(account["token_uri"], timeout=10)
    check("a fault of the token endpoint", again.status_code == 503)
    control("/fault?503&1000")
    control("/fault?none")
    check("an end to faults", seal(using, about["key"], b"x").verified_plaintext_crc32c)
    try:
        control("/fault?nonsense")
        check("nonsense is not understood", False)
    except urllib.error.HTTPError as refused:
        check("nonsense is not understood", refused.code == 400)

    def post(path, **request):
        return requests.post(f"{url}/v1/{path}", headers={"Authorization": "Bearer " + token}, timeout=10, **request)

    answer = post(about["key"] + ":encrypt", json={"plaintext": "eA", "plaintextCrc32c": crc32c(b"x")})
    check("a number for a checksum, base64 without padding", answer.json()["verifiedPlaintextCrc32c"] is True)
    check("checksums are strings", isinstance(answer.json()["ciphertextCrc32c"], str))
    check("what is false is left out", "verifiedAdditionalAuthenticatedDataCrc32c" not in answer.json())
    check("names for enums", answer.json()["protectionLevel"] == "SOFTWARE")
    check("JSON comes in chunks", answer.headers["Transfer-Encoding"] == "chunked")
    answer = post(about["key"] + ":encrypt", json={"plaintext": "eA", "aad": "eA"})
    check("an unknown name", answer.status_code == 400 and 'Unknown name "aad"' in answer.json()["error"]["message"])
    check("a form instead of JSON", post(about["key"] + ":encrypt", data={"plaintext": "eA"}).status_code == 400)

    control("/secret?db&first")
    control("/secret?db&second%26")

    def secret(path, bearer=token):
        headers = {"Authorization": "Bearer " + bearer}
        return requests.get(f"{url}/v1/projects/{path}:access", headers=headers, timeout=10)

    got = secret("test/secrets/db/versions/latest").json()
    check("the latest secret", got["name"] == "projects/123456789012/secrets/db/versions/2"
          and got["payload"] == {"data": "c2Vjb25kJg==", "dataCrc32c": str(crc32c(b"second&"))})
    check("a former one", secret("test/secrets/db/versions/1").json()["payload"]["data"] == "Zmlyc3Q=")
    check("none", secret("test/secrets/other/versions/1").status_code == 404)
    narrow = of_account(account, CLOUD_KMS)
    narrow.refresh(transport)
    answer = secret("test/secrets/db/versions/1", narrow.token)
    check("the KMS's scope opens no secrets", answer.status_code == 403 and "scopes" in answer.text)
    control("/fault?data-crc")
    wrong = secret("test/secrets/db/versions/1").json()["payload"]
    check("fault data-crc", wrong["dataCrc32c"] != str(crc32c(b"first")))

    control("/token-seconds?0")
    wide = of_account(account, CLOUD_KMS)
    wide.refresh(transport)
    check("a token that lives for no time", look(wide.token).status_code == 401)


def main():
    check("CRC32C of RFC 3720", crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"123456789") == 0xE3069283)
    prove_login()
    with tempfile.TemporaryDirectory() as folder:
        prove_external(folder)
    prove_metadata()
    who = of_account(account, CLOUD_PLATFORM)
    using = token_only(who)
    prove_keys(using)
    prove_control(using, who.token)
    server.stdin.close()
    check("the server ends", server.wait(10) == 0)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed != 0)


main()
