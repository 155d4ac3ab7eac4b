#!/usr/bin/env python3
"""AWS on loopback: KMS, STS, IAM and Secrets Manager by moto, which checks signatures and policies, behind a front that
counts, fails when told to, and plays what moto does not.

    PYTHON moto_kms.py CERTS

PYTHON has the packages of moto.requirements (test/install-python); CERTS is a directory made by make_certs.sh. Prints
one line of JSON, what describe() says, and serves until its standard input closes.

`port` is HTTPS. It hands the request on as it came, so that moto sees what was signed, and adds what moto leaves out:
the clock (a request dated more than five minutes off is refused), the expiry of temporary credentials, the check of the
web identity token. `metadata` is HTTP, as on a machine of AWS, for credentials only:
    /latest/api/token, /latest/meta-data/iam/security-credentials/   IMDSv2
    /v2/credentials/ID                  a container of ECS
    /v1/credentials                     a pod of EKS; Authorization is the container token
`control` is HTTP too:
    GET  /counts                        how often each was asked: X-Amz-Target, sts.ACTION, imds.token, imds.role,
                                        imds.credentials, container.ecs, container.eks; and `connection`, those over TLS
    GET  /issued                        the secret halves of all temporary credentials so far
    POST /fault?what=W&times=N          the next N answers are W: a name in ERRORS, or an HTTP status. Of the KMS, or of
                                        what `at`, a regexp on the names in /counts, matches; &status=S for another
                                        status. Without `what`: no faults any more
    POST /SETTING?VALUE                 see SETTINGS
"""
import base64
import collections
import datetime
import email.utils
import http.client
import json
import logging
import os
import re
import secrets
import sys
import threading
import time
import urllib.parse
import xml.sax.saxutils

import aws_environment  # noqa: F401

# Before moto is imported: the three calls that make the first user are free, all others are checked.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "3"

import boto3  # noqa: E402
import botocore.auth  # noqa: E402
import botocore.awsrequest  # noqa: E402
import botocore.credentials  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

import fault_kms  # noqa: E402
import tls_server  # noqa: E402

REGION = "eu-central-1"
BODY_SECRET = "body-secret-of-the-moto-front"  # in every error that the front makes up: must never be repeated
CLOCK_SKEW = 300
CONTAINER_ID = "3f1c9f4e-envcrypt"
ROLE = "envcrypt-app"
IMDS_ROLES = "/latest/meta-data/iam/security-credentials"
PATHS = {"/latest/api/token": "imds.token", IMDS_ROLES: "imds.role", f"{IMDS_ROLES}/{ROLE}": "imds.credentials",
         f"/v2/credentials/{CONTAINER_ID}": "container.ecs", "/v1/credentials": "container.eks"}

SETTINGS = {
    "date": "0",                   # seconds that this server's clock is ahead
    "material": "",                # KeyMaterialId (hex) of what is wrapped from now on; none: answers have no such member
    "credential-seconds": "3600",  # until temporary credentials expire, from when they are handed out; may be negative
    "container-token": "container-token-" + secrets.token_hex(16),
    "web-identity-token": "eyJhbGciOiJSUzI1NiJ9." + secrets.token_hex(24) + "." + secrets.token_hex(24),
    "errors": "moto",              # aws: a refused signature or action is told as the real KMS tells it
}

EXPIRED = "Signature expired: {dated} is now earlier than {late} ({now} - 5 min.)"
NOT_YET = "Signature not yet current: {dated} is still later than {early} ({now} + 5 min.)"

# HTTP status, the error's namespace, message. AWS names some errors with a namespace and some without.
CORAL = "com.amazon.coral.service#"
ERRORS = {
    "ThrottlingException": (400, "", "You have exceeded the rate at which you may call KMS."),
    "LimitExceededException": (400, "", "The request was rejected because a quota was exceeded."),
    "KMSInternalException": (500, "", "The request was rejected because an internal exception occurred."),
    "DependencyTimeoutException": (503, "", "The system timed out while trying to fulfill the request."),
    "KeyUnavailableException": (500, "", "The request was rejected because the key was not available."),
    "DisabledException": (400, "", "The key is disabled."),
    "KMSInvalidStateException": (400, "", "The key is pending deletion."),
    "NotFoundException": (400, "", "The key does not exist."),
    "IncorrectKeyException": (400, "", "The key ID in the request does not identify a CMK that can perform this operation."),
    "InvalidCiphertextException": (400, "", None),
    "InvalidKeyUsageException": (400, "", "The key's usage is not ENCRYPT_DECRYPT."),
    "ValidationException": (400, "", "1 validation error detected."),
    "AccessDeniedException": (400, "", "The user is not authorized to perform this action, or the key does not exist."),
    "ExpiredTokenException": (400, CORAL, "The security token included in the request is expired"),
    "UnrecognizedClientException": (400, CORAL, "The security token included in the request is invalid."),
    "InvalidSignatureException": (400, CORAL, EXPIRED),
    "IncompleteSignatureException": (400, CORAL, "Authorization header requires 'X-Amz-Date'."),
    "MissingAuthenticationTokenException": (400, CORAL, "Missing Authentication Token"),
    "ServiceUnavailableException": (503, "", "The service is unavailable."),
    # of STS, whose errors are XML
    "AccessDenied": (403, "", "The user is not authorized to perform: sts:AssumeRole"),
    "ExpiredToken": (403, "", "The security token included in the request is expired"),
    "SignatureDoesNotMatch": (403, "", EXPIRED),
    "MissingAuthenticationToken": (403, "", "Request is missing Authentication Token"),
    "IncompleteSignature": (400, "", "Authorization header requires 'X-Amz-Date'."),
    "InvalidIdentityToken": (400, "", "Incorrect token audience"),
    "IDPCommunicationError": (400, "", "An error occurred when communicating with the identity provider."),
    "RegionDisabledException": (403, "", "STS is not activated in this region for account:123456789012."),
    "Throttling": (400, "", "Rate exceeded"),
}
# The names that STS has for what the front finds out by itself.
OF_STS = {"ExpiredTokenException": "ExpiredToken", "InvalidSignatureException": "SignatureDoesNotMatch",
          "IncompleteSignatureException": "IncompleteSignature",
          "MissingAuthenticationTokenException": "MissingAuthenticationToken"}
# moto tells all services' refusals as IAM does, in XML with status 403.
OF_MOTO = {"SignatureDoesNotMatch": "InvalidSignatureException", "InvalidClientTokenId": "UnrecognizedClientException",
           "AccessDenied": "AccessDeniedException"}

settings = dict(SETTINGS)
counts = collections.Counter()
faults = []
materials = {}  # of wrapped keys
expiries = {}  # of session tokens
issued = []
imds_tokens = {}
lock = threading.RLock()
world = {}  # what build_world() made


# --- time ---

def now():
    return time.time() + int(settings["date"])


def stamp(seconds):
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def iso(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def seconds_of(dated):
    return datetime.datetime.strptime(dated, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc).timestamp()


# --- moto ---

def ask_moto(method, path, headers, body):
    connection = http.client.HTTPConnection("127.0.0.1", world["moto"], timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


def client(service, keys=None):
    key_id, secret = keys or world["admin"]
    return boto3.client(service, region_name=REGION, endpoint_url=f"http://127.0.0.1:{world['moto']}",
                        aws_access_key_id=key_id, aws_secret_access_key=secret)


def create_user(iam, name, *actions):
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="it", PolicyDocument=policy(actions))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def policy(actions, **more):
    what = {"Effect": "Allow", "Action": list(actions), **(more or {"Resource": "*"})}
    return json.dumps({"Version": "2012-10-17", "Statement": [what]})


def build_world():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    world["moto"] = server.get_host_and_port()[1]
    # exactly the three calls that are free
    world["admin"] = create_user(client("iam", ("free", "free")), "admin", "*")
    iam, kms = client("iam"), client("kms")
    allowed = ("kms:*", "sts:AssumeRole", "secretsmanager:GetSecretValue")
    world["app"] = create_user(iam, "app", *allowed)
    world["limited"] = create_user(iam, "limited", "kms:Decrypt")
    world["sts"] = client("sts")
    account = world["sts"].get_caller_identity()["Account"]
    users = [f"arn:aws:iam::{account}:user/{name}" for name in ("app", "admin")]
    world["role_arn"] = iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=policy(
        ("sts:AssumeRole", "sts:AssumeRoleWithWebIdentity"), Principal={"AWS": users}))["Role"]["Arn"]
    iam.put_role_policy(RoleName=ROLE, PolicyName="it", PolicyDocument=policy(allowed))
    for name in ("app", "own"):
        world[name + "_key"] = kms.create_key(Description=name)["KeyMetadata"]["Arn"]
        kms.create_alias(AliasName="alias/" + name, TargetKeyId=world[name + "_key"])
    world["secret"] = "secret-of-secretsmanager-" + secrets.token_hex(8)
    world["secret_arn"] = client("secretsmanager").create_secret(
        Name="envcrypt/test", SecretString=world["secret"])["ARN"]


def describe(port, metadata, control):
    def keys(of):
        return {"access_key_id": of[0], "secret_access_key": of[1]}
    return {
        "port": port, "metadata": metadata, "control": control, "region": REGION,
        "key_arn": world["app_key"], "own_key_arn": world["own_key"], **keys(world["app"]),
        "limited": keys(world["limited"]), "role_arn": world["role_arn"], "role_name": ROLE,
        "secret_arn": world["secret_arn"], "secret": world["secret"], "body_secret": BODY_SECRET,
        "container_id": CONTAINER_ID, "container_token": settings["container-token"],
        "web_identity_token": settings["web-identity-token"],
    }


# --- temporary credentials ---

def expire(token):
    with lock:
        expiries[token] = now() + int(settings["credential-seconds"])
        return iso(expiries[token])


def new_credentials(session):
    """What IMDS and the containers hand out: moto's STS knows it, so a signature by it can be checked."""
    found = world["sts"].assume_role(
        RoleArn=world["role_arn"], RoleSessionName=session + secrets.token_hex(4))["Credentials"]
    with lock:
        issued.extend((found["SecretAccessKey"], found["SessionToken"]))
    return {"AccessKeyId": found["AccessKeyId"], "SecretAccessKey": found["SecretAccessKey"],
            "Token": found["SessionToken"], "Expiration": expire(found["SessionToken"])}


# --- the front ---

class Front(fault_kms.Call):
    def do_PUT(self):
        self.answer()

    def date_time_string(self, timestamp=None):
        return email.utils.formatdate(now() if timestamp is None else timestamp, usegmt=True)

    def answer(self):
        self.raw_body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.name = self.name_of_request()
        with lock:
            counts[self.name] += 1
            fault = next((one for one in faults if one["at"].search(self.name)), None)
            if fault:
                fault["times"] -= 1
                if not fault["times"]:
                    faults.remove(fault)
        if fault:
            self.refuse(fault["what"], fault["status"])
        elif self.name.startswith("sts.") and "json" in (self.headers.get("Accept") or ""):
            self.send_json({self.name.removeprefix("sts.") + "Response": {}})  # AWS does as it is asked, moto does not
        elif self.name.startswith(("imds.", "container.")):
            getattr(self, "answer_" + self.name.replace(".", "_"))()
        elif self.server.context is None:
            self.send(404, b"")  # a key or a password must not go out in the clear
        else:
            self.forward()

    def name_of_request(self):
        path = self.path.partition("?")[0]
        name = self.headers.get("X-Amz-Target") or PATHS.get(path.rstrip("/"))
        action = urllib.parse.parse_qs(self.raw_body.decode("latin-1")).get("Action")
        return name or (f"sts.{action[0]}" if action else path)

    # - errors -

    def refuse(self, what, status=None, message=None):
        if what.isdigit():
            self.send(int(what), f"<html><body>{what} {BODY_SECRET}</body></html>".encode(),
                      (("Content-Type", "text/html"),))
            return
        is_sts = self.name.startswith("sts.")
        if is_sts:
            what = OF_STS.get(what, what)
        usual, namespace, text = ERRORS[what]
        message = message or text
        if message:
            message = message.format(dated=self.headers.get("X-Amz-Date"), now=stamp(now()), late=stamp(now() - CLOCK_SKEW),
                                     early=stamp(now() + CLOCK_SKEW)) + " " + BODY_SECRET
        if is_sts:
            body = ('<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
                    f"<Code>{what}</Code><Message>{xml.sax.saxutils.escape(message or '')}</Message></Error>"
                    f"<RequestId>{secrets.token_hex(16)}</RequestId></ErrorResponse>")
            content_type = "text/xml"
        else:
            error = {"__type": namespace + what}
            if message:
                # KMS writes a refusal's message with a capital, all others' without
                error["Message" if what == "AccessDeniedException" else "message"] = message
            body, content_type = json.dumps(error), "application/x-amz-json-1.1"
        self.send(status or usual, body.encode(), (("Content-Type", content_type),
                                                   ("x-amzn-RequestId", secrets.token_hex(16))))

    # - to moto and back -

    def forward(self):
        if self.name == "sts.AssumeRoleWithWebIdentity":
            headers = self.check_web_identity()
        else:
            headers = self.check_time()
        if headers is None:
            return
        status, answered, body = ask_moto(self.command, self.path, headers, self.raw_body)
        if status == 200:
            body = self.amend(body)
        elif settings["errors"] == "aws" and "X-Amz-Target" in self.headers:
            told = re.search(rb"<Code>(\w+)</Code>", body)
            if told and told[1].decode() in OF_MOTO:
                self.refuse(OF_MOTO[told[1].decode()])
                return
        self.send(status, body, [(name, value) for name, value in answered if name.lower() not in (
            "connection", "content-length", "date", "server", "transfer-encoding")])

    # both answer by themselves, or return the headers to go on with

    def check_time(self):
        if "Authorization" not in self.headers:
            return self.refuse("MissingAuthenticationTokenException")
        try:
            off = seconds_of(self.headers.get("X-Amz-Date", "")) - now()
        except ValueError:
            return self.refuse("IncompleteSignatureException")
        if abs(off) > CLOCK_SKEW:
            return self.refuse("InvalidSignatureException", message=EXPIRED if off < 0 else NOT_YET)
        with lock:
            expiry = expiries.get(self.headers.get("X-Amz-Security-Token"))
        if expiry is not None and expiry <= now():
            return self.refuse("ExpiredTokenException")
        return [(name, value) for name, value in self.headers.items() if name.lower() not in ("connection", "expect")]

    def check_web_identity(self):
        """AWS wants no signature here, but moto does once it checks any: the administrator gives his."""
        form = urllib.parse.parse_qs(self.raw_body.decode("latin-1"))
        if "Authorization" in self.headers:
            return self.refuse("ValidationException")  # a client that has credentials already is not one of these
        if form.get("WebIdentityToken") != [settings["web-identity-token"]]:
            return self.refuse("InvalidIdentityToken")
        kept = {"Host": self.headers["Host"], "Content-Type": self.headers["Content-Type"]}
        request = botocore.awsrequest.AWSRequest("POST", f"https://{self.headers['Host']}{self.path}", kept, self.raw_body)
        botocore.auth.SigV4Auth(botocore.credentials.Credentials(*world["admin"]), "sts", REGION).add_auth(request)
        return [*request.headers.items(), ("Content-Length", str(len(self.raw_body)))]

    def amend(self, body):
        if self.name.startswith("sts."):
            token = re.search(rb"<SessionToken>(.*?)</SessionToken>", body)
            if not token:
                return body
            token = xml.sax.saxutils.unescape(token[1].decode())
            secret = re.search(rb"<SecretAccessKey>(.*?)</SecretAccessKey>", body)[1].decode()
            with lock:
                issued.extend((xml.sax.saxutils.unescape(secret), token))
            return re.sub(rb"<Expiration>.*?</Expiration>", b"<Expiration>%s</Expiration>" % expire(token).encode(), body)
        if not self.name.startswith("TrentService."):
            return body
        answer = json.loads(body)
        asked = json.loads(self.raw_body)
        material = settings["material"]
        with lock:
            if "CiphertextBlob" in answer:
                materials[answer["CiphertextBlob"]] = material
            of_source = materials.get(asked.get("CiphertextBlob"), material)
        operation = self.name.partition(".")[2]
        members = {"GenerateDataKey": {"KeyMaterialId": material},
                   "GenerateDataKeyWithoutPlaintext": {"KeyMaterialId": material},
                   "Decrypt": {"KeyMaterialId": of_source},
                   "ReEncrypt": {"SourceKeyMaterialId": of_source, "DestinationKeyMaterialId": material}}
        answer.update({name: value for name, value in members.get(operation, {}).items() if value})
        if operation == "DescribeKey" and material:
            answer["KeyMetadata"]["CurrentKeyMaterialId"] = material
        return json.dumps(answer).encode()

    # - credentials of a machine or a container -

    def send_json(self, value):
        self.send(200, json.dumps(value).encode(), (("Content-Type", "application/json"),))

    def answer_imds_token(self):
        seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.command != "PUT":
            self.send(405, b"")
        elif not seconds.isdigit() or not 1 <= int(seconds) <= 21600:
            self.send(400, b"")
        else:
            token = base64.b64encode(secrets.token_bytes(40)).decode()
            with lock:
                imds_tokens[token] = time.time() + int(seconds)
                issued.append(token)
            self.send(200, token.encode(), (("Content-Type", "text/plain"),
                                            ("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", seconds)))

    def has_imds_token(self):
        if self.command == "GET" and imds_tokens.get(self.headers.get("X-aws-ec2-metadata-token"), 0) > time.time():
            return True
        self.send(401, b"")
        return False

    def answer_imds_role(self):
        if self.has_imds_token():
            self.send(200, ROLE.encode(), (("Content-Type", "text/plain"),))

    def answer_imds_credentials(self):
        if self.has_imds_token():
            self.send_json({"Code": "Success", "LastUpdated": iso(now()), "Type": "AWS-HMAC", **new_credentials("imds")})

    def answer_container_ecs(self):
        self.send_json({"RoleArn": world["role_arn"], **new_credentials("ecs")})

    def answer_container_eks(self):
        if self.headers.get("Authorization") == settings["container-token"]:
            self.send_json(new_credentials("eks"))
        else:
            self.send(401, b"")


class Control(fault_kms.Call):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        name = path[1:]
        body = {}
        with lock:
            if self.command == "GET" and name in ("counts", "issued"):
                body = {"counts": counts, "issued": issued}[name]
            elif self.command == "POST" and name == "fault":
                asked = dict(urllib.parse.parse_qsl(query))
                what = asked.get("what", "")
                if not what:
                    faults.clear()
                elif what in ERRORS or what.isdigit():
                    faults.append({"what": what, "at": re.compile(asked.get("at", r"^TrentService\.")),
                                   "times": int(asked.get("times", 1)), "status": int(asked.get("status", 0))})
                else:
                    body = None
            elif self.command == "POST" and name in settings:
                settings[name] = urllib.parse.unquote(query)
            else:
                body = None
            status, text = (404, b"") if body is None else (200, json.dumps(body).encode())
        self.send(status, text)


class Server(fault_kms.Server):
    def get_request(self):
        with lock:
            counts["connection"] += self.context is not None
        return super().get_request()


def main():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # of every request, it says otherwise
    build_world()
    port = Server(Front, tls_server.tls_context(sys.argv[1], "good")).begin()
    print(json.dumps(describe(port, Server(Front).begin(), Server(Control).begin())), flush=True)
    while sys.stdin.buffer.read(65536):
        pass
    os._exit(0)  # not waiting for those that have not hung up


if __name__ == "__main__":
    main()
