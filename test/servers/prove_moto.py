#!/usr/bin/env python3
"""Proves moto_kms.py by AWS's own client for Python, which signs and parses by itself.

    PYTHON prove_moto.py CERTS

As moto_kms.py. The last line is "N passed, N failed".
"""
import datetime
import json
import os
import subprocess
import sys
import traceback
import urllib.error
import urllib.request

import aws_environment  # noqa: F401
import boto3
import botocore.config
import botocore.exceptions
import botocore.utils

CONTEXT = {"tenant": "acme", "column": "a.b"}
MATERIAL = "0123456789abcdef" * 4

tests = []


def test(function):
    tests.append(function)
    return function


class World:
    def __init__(self, told, certs):
        self.__dict__.update(told)
        self.ca = os.path.join(certs, "ca.pem")
        self.metadata_url = f"http://127.0.0.1:{self.metadata}"

    def client(self, service, key_id=None, secret=None, token=None):
        # one attempt, so that what is counted is what was asked
        return boto3.client(service, region_name=self.region, endpoint_url=f"https://127.0.0.1:{self.port}",
                            verify=self.ca, aws_access_key_id=key_id or self.access_key_id,
                            aws_secret_access_key=secret or self.secret_access_key, aws_session_token=token,
                            config=botocore.config.Config(retries={"total_max_attempts": 1}))

    def kms_of(self, credentials):
        return self.client("kms", credentials["AccessKeyId"], credentials["SecretAccessKey"],
                           credentials.get("Token") or credentials["SessionToken"])

    def control_port(self, method, path):
        request = urllib.request.Request(f"http://127.0.0.1:{self.control}/{path}", method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def set(self, path):
        self.control_port("POST", path)

    def counts(self):
        return self.control_port("GET", "counts")

    def get(self, path, method="GET", **headers):
        """Status, JSON or text."""
        request = urllib.request.Request(self.metadata_url + path, method=method,
                                         headers={name.replace("_", "-"): value for name, value in headers.items()})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, None
        return status, json.loads(text) if text.startswith("{") else text


def check(condition, *what):
    if not condition:
        raise AssertionError(*what)


def refused(code, status, call, **arguments):
    """The call fails with this code of AWS's and this HTTP status."""
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        got = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        check(got == (code, status), got)
        return error.response
    raise AssertionError("not refused")


@test
def generate_data_key_and_decrypt(aws):
    kms = aws.client("kms")
    for key in ("alias/app", aws.key_arn):
        made = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)
        check(len(made["Plaintext"]) == 32 and made["KeyId"] == aws.key_arn, made)
        opened = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], KeyId=key, EncryptionContext=CONTEXT)
        check(opened["Plaintext"] == made["Plaintext"] and opened["KeyId"] == aws.key_arn, opened)


@test
def encrypt_and_decrypt(aws):
    kms = aws.client("kms")
    wrapped = kms.encrypt(KeyId="alias/own", Plaintext=b"x" * 32, EncryptionContext=CONTEXT)
    check(wrapped["KeyId"] == aws.own_key_arn, wrapped)
    opened = kms.decrypt(CiphertextBlob=wrapped["CiphertextBlob"], EncryptionContext=CONTEXT)
    check(opened["Plaintext"] == b"x" * 32, opened)


@test
def wrong_context(aws):
    kms = aws.client("kms")
    blob = kms.generate_data_key(KeyId="alias/app", KeySpec="AES_256", EncryptionContext=CONTEXT)["CiphertextBlob"]
    for context in ({}, {"tenant": "other", "column": "a.b"}):
        refused("InvalidCiphertextException", 400, kms.decrypt, CiphertextBlob=blob, EncryptionContext=context)


@test
def wrong_ciphertext(aws):
    kms = aws.client("kms")
    blob = bytearray(kms.generate_data_key(KeyId="alias/app", KeySpec="AES_256")["CiphertextBlob"])
    blob[-1] ^= 1
    refused("InvalidCiphertextException", 400, kms.decrypt, CiphertextBlob=bytes(blob))


@test
def unknown_key(aws):
    refused("NotFoundException", 400, aws.client("kms").generate_data_key, KeyId="alias/none", KeySpec="AES_256")


@test
def re_encrypt(aws):
    kms = aws.client("kms")
    made = kms.generate_data_key(KeyId="alias/app", KeySpec="AES_256", EncryptionContext=CONTEXT)
    moved = kms.re_encrypt(CiphertextBlob=made["CiphertextBlob"], SourceEncryptionContext=CONTEXT,
                           DestinationKeyId="alias/own", DestinationEncryptionContext={"tenant": "other"})
    check((moved["SourceKeyId"], moved["KeyId"]) == (aws.key_arn, aws.own_key_arn), moved)
    opened = kms.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"tenant": "other"})
    check(opened["Plaintext"] == made["Plaintext"] and opened["KeyId"] == aws.own_key_arn, opened)


@test
def describe_key(aws):
    found = aws.client("kms").describe_key(KeyId="alias/app")["KeyMetadata"]
    check(found["Arn"] == aws.key_arn and found["Enabled"] and "CurrentKeyMaterialId" not in found, found)


def refused_with(status, call, **arguments):
    """moto answers a JSON protocol in XML, which the client does not parse, so only the HTTP status tells."""
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        got = error.response["ResponseMetadata"]["HTTPStatusCode"]
        check(got == status, got)
        return
    raise AssertionError("not refused")


@test
def wrong_secret(aws):
    for service, call, arguments in (("kms", "describe_key", {"KeyId": "alias/app"}),
                                     ("secretsmanager", "get_secret_value", {"SecretId": aws.secret_arn}),
                                     ("sts", "assume_role", {"RoleArn": aws.role_arn, "RoleSessionName": "it"})):
        refused_with(403, getattr(aws.client(service, secret="wrong" * 8), call), **arguments)


@test
def unknown_user(aws):
    refused_with(403, aws.client("kms", key_id="AKIAUNKNOWNUNKNOWN00").describe_key, KeyId="alias/app")


@test
def limited_user(aws):
    blob = aws.client("kms").generate_data_key(KeyId="alias/app", KeySpec="AES_256")
    limited = aws.client("kms", aws.limited["access_key_id"], aws.limited["secret_access_key"])
    check(limited.decrypt(CiphertextBlob=blob["CiphertextBlob"])["Plaintext"] == blob["Plaintext"])
    refused_with(403, limited.generate_data_key, KeyId="alias/app", KeySpec="AES_256")


@test
def refusals_as_aws_tells_them(aws):
    aws.set("errors?aws")
    try:
        refused("InvalidSignatureException", 400, aws.client("kms", secret="wrong" * 8).describe_key, KeyId="alias/app")
        refused("UnrecognizedClientException", 400, aws.client("kms", key_id="AKIAUNKNOWNUNKNOWN00").describe_key,
                KeyId="alias/app")
        limited = aws.client("kms", aws.limited["access_key_id"], aws.limited["secret_access_key"])
        refused("AccessDeniedException", 400, limited.describe_key, KeyId="alias/app")
        refused("InvalidSignatureException", 400, aws.client("secretsmanager", secret="wrong" * 8).get_secret_value,
                SecretId=aws.secret_arn)
    finally:
        aws.set("errors?moto")


@test
def get_secret_value(aws):
    found = aws.client("secretsmanager").get_secret_value(SecretId=aws.secret_arn)
    check(found["SecretString"] == aws.secret, found)


@test
def assume_role(aws):
    made = aws.client("sts").assume_role(RoleArn=aws.role_arn, RoleSessionName="it")["Credentials"]
    aws.kms_of(made).describe_key(KeyId="alias/app")
    refused_with(403, aws.kms_of({**made, "SessionToken": "wrong"}).describe_key, KeyId="alias/app")
    check(made["SessionToken"] in aws.control_port("GET", "issued"))
    limited = aws.client("sts", aws.limited["access_key_id"], aws.limited["secret_access_key"])
    refused("AccessDenied", 403, limited.assume_role, RoleArn=aws.role_arn, RoleSessionName="it")


@test
def assume_role_with_web_identity(aws):
    sts = aws.client("sts")
    told = {"RoleArn": aws.role_arn, "RoleSessionName": "it"}
    made = sts.assume_role_with_web_identity(WebIdentityToken=aws.web_identity_token, **told)["Credentials"]
    aws.kms_of(made).describe_key(KeyId="alias/app")
    refused("InvalidIdentityToken", 400, sts.assume_role_with_web_identity, WebIdentityToken="wrong", **told)


@test
def expired_credentials(aws):
    aws.set("credential-seconds?-1")
    try:
        made = aws.client("sts").assume_role(RoleArn=aws.role_arn, RoleSessionName="it")["Credentials"]
    finally:
        aws.set("credential-seconds?3600")
    check(made["Expiration"] < datetime.datetime.now(datetime.timezone.utc), made["Expiration"])
    refused("ExpiredTokenException", 400, aws.kms_of(made).describe_key, KeyId="alias/app")


@test
def imds(aws):
    fetcher = botocore.utils.InstanceMetadataFetcher(
        timeout=60, num_attempts=1, env={}, config={"ec2_metadata_service_endpoint": aws.metadata_url + "/",
                                                    "ec2_metadata_v1_disabled": True})
    found = fetcher.retrieve_iam_role_credentials()
    check(found["role_name"] == aws.role_name, found)
    aws.client("kms", found["access_key"], found["secret_key"], found["token"]).describe_key(KeyId="alias/app")


@test
def imds_needs_its_token(aws):
    roles = "/latest/meta-data/iam/security-credentials/"
    check(aws.get(roles)[0] == 401)
    check(aws.get(roles + aws.role_name, X_aws_ec2_metadata_token="wrong")[0] == 401)
    check(aws.get("/latest/api/token", "PUT")[0] == 400)
    check(aws.get("/latest/api/token")[0] == 405)
    status, token = aws.get("/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    check(status == 200)
    check(aws.get(roles, X_aws_ec2_metadata_token=token) == (200, aws.role_name))
    check(aws.get(roles + "other", X_aws_ec2_metadata_token=token)[0] == 404)


@test
def container(aws):
    found = botocore.utils.ContainerMetadataFetcher().retrieve_full_uri(
        f"{aws.metadata_url}/v2/credentials/{aws.container_id}")
    aws.kms_of(found).describe_key(KeyId="alias/app")
    check(aws.get("/v2/credentials/other")[0] == 404)


@test
def pod(aws):
    found = botocore.utils.ContainerMetadataFetcher().retrieve_full_uri(
        f"{aws.metadata_url}/v1/credentials", headers={"Authorization": aws.container_token})
    aws.kms_of(found).describe_key(KeyId="alias/app")
    check(aws.get("/v1/credentials")[0] == 401)
    check(aws.get("/v1/credentials", Authorization="wrong")[0] == 401)
    aws.set("container-token?other")
    try:
        check(aws.get("/v1/credentials", Authorization=aws.container_token)[0] == 401)
        check(aws.get("/v1/credentials", Authorization="other")[0] == 200)
    finally:
        aws.set("container-token?" + aws.container_token)


@test
def credential_seconds(aws):
    aws.set("credential-seconds?120")
    try:
        found = aws.get(f"/v2/credentials/{aws.container_id}")[1]
    finally:
        aws.set("credential-seconds?3600")
    expiry = datetime.datetime.strptime(found["Expiration"], "%Y-%m-%dT%H:%M:%S%z")
    left = (expiry - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    check(60 < left <= 120, left)


@test
def no_keys_in_the_clear(aws):
    request = urllib.request.Request(aws.metadata_url + "/", b"{}", {"X-Amz-Target": "TrentService.Decrypt"})
    try:
        urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        check(error.code == 404, error.code)
    else:
        raise AssertionError("answered")


@test
def faults(aws):
    kms = aws.client("kms")
    for code, status in (("ThrottlingException", 400), ("KMSInternalException", 500), ("DisabledException", 400),
                         ("KMSInvalidStateException", 400), ("NotFoundException", 400), ("IncorrectKeyException", 400),
                         ("AccessDeniedException", 400), ("ExpiredTokenException", 400),
                         ("InvalidSignatureException", 400), ("DependencyTimeoutException", 503)):
        aws.set(f"fault?what={code}&times=1")
        error = refused(code, status, kms.describe_key, KeyId="alias/app")["Error"]
        check(aws.body_secret in error["Message"], error)
        kms.describe_key(KeyId="alias/app")
    aws.set("fault?what=503&times=2")
    for _ in range(2):
        refused_with(503, kms.describe_key, KeyId="alias/app")
    kms.describe_key(KeyId="alias/app")


@test
def faults_of_one_kind(aws):
    kms = aws.client("kms")
    made = kms.generate_data_key(KeyId="alias/app", KeySpec="AES_256")
    aws.set("fault?what=AccessDeniedException&times=9&at=Decrypt$&status=403")
    refused("AccessDeniedException", 403, kms.decrypt, CiphertextBlob=made["CiphertextBlob"])
    kms.describe_key(KeyId="alias/app")
    aws.set("fault")
    kms.decrypt(CiphertextBlob=made["CiphertextBlob"])
    aws.set("fault?what=IDPCommunicationError&at=sts")
    refused("IDPCommunicationError", 400, aws.client("sts").assume_role, RoleArn=aws.role_arn, RoleSessionName="it")
    aws.set("fault?what=500&at=imds")
    check(aws.get("/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")[0] == 500)


@test
def material(aws):
    kms = aws.client("kms")
    before = kms.generate_data_key(KeyId="alias/app", KeySpec="AES_256")
    check("KeyMaterialId" not in before, before)
    aws.set("material?" + MATERIAL)
    try:
        made = kms.generate_data_key(KeyId="alias/app", KeySpec="AES_256")
        check(made["KeyMaterialId"] == MATERIAL, made)
        check(kms.describe_key(KeyId="alias/app")["KeyMetadata"]["CurrentKeyMaterialId"] == MATERIAL)
        aws.set("material?" + "ab" * 32)
        check(kms.decrypt(CiphertextBlob=made["CiphertextBlob"])["KeyMaterialId"] == MATERIAL)
        moved = kms.re_encrypt(CiphertextBlob=made["CiphertextBlob"], DestinationKeyId="alias/app")
        check((moved["SourceKeyMaterialId"], moved["DestinationKeyMaterialId"]) == (MATERIAL, "ab" * 32), moved)
    finally:
        aws.set("material")


@test
def clock(aws):
    for seconds, word in ((3600, "Signature expired"), (-3600, "Signature not yet current")):
        aws.set(f"date?{seconds}")
        try:
            response = refused("InvalidSignatureException", 400, aws.client("kms").describe_key, KeyId="alias/app")
        finally:
            aws.set("date?0")
        check(response["Error"]["Message"].startswith(word), response)
        check(abs(off_of(response) - seconds) < 60, response)
    check(abs(off_of(aws.client("kms").describe_key(KeyId="alias/app"))) < 60)


def off_of(response):
    told = response["ResponseMetadata"]["HTTPHeaders"]["date"]
    there = datetime.datetime.strptime(told, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=datetime.timezone.utc)
    return (there - datetime.datetime.now(datetime.timezone.utc)).total_seconds()


@test
def counting_and_keep_alive(aws):
    before = aws.counts()
    kms = aws.client("kms")
    for _ in range(5):
        kms.describe_key(KeyId="alias/app")
    after = aws.counts()
    check(after["TrentService.DescribeKey"] - before["TrentService.DescribeKey"] == 5, before, after)
    check(after["connection"] - before["connection"] == 1, before, after)


@test
def unsigned(aws):
    kms = boto3.client("kms", region_name=aws.region, endpoint_url=f"https://127.0.0.1:{aws.port}", verify=aws.ca,
                       config=botocore.config.Config(signature_version=botocore.UNSIGNED))
    refused("MissingAuthenticationTokenException", 400, kms.describe_key, KeyId="alias/app")


def main():
    certs = sys.argv[1]
    server = subprocess.Popen(
        [sys.executable, "-B", os.path.join(os.path.dirname(os.path.abspath(__file__)), "moto_kms.py"), certs],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    failed = 0
    try:
        aws = World(json.loads(server.stdout.readline()), certs)
        for function in tests:
            try:
                function(aws)
            except Exception:
                failed += 1
                print(f"{function.__name__} failed")
                traceback.print_exc()
    finally:
        server.stdin.close()
        server.wait()
    print(f"{len(tests) - failed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
