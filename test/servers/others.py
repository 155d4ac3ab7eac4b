#!/usr/bin/env python3
"""Two services that a KMS's logins lead to: Doppler's API, and the part of Kubernetes' that judges service account tokens.

    others.py CERTS

CERTS is a directory made by make_certs.sh. Prints one line of JSON, {"port", "doppler_token", "body_secret"}, and serves
over TLS until its standard input closes. Each line that comes in there is JSON, and answered by a line: {"secret": [NAME,
VALUE]} keeps a secret, {"service_account_token": TOKEN} is the one that is good.

    GET  /v3/configs/config/secret?project=app&config=prd&name=NAME
    POST /apis/authentication.k8s.io/v1/tokenreviews
"""
import json
import secrets
import sys
import urllib.parse

import fault_kms
import tls_server

DOPPLER_TOKEN = "dp.st.prd." + secrets.token_hex(20)
BODY_SECRET = "body-secret-of-the-other-services"
known = {}
good_tokens = set()


class Call(fault_kms.http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status, value):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(url.query))
        if self.headers.get("Authorization") != "Bearer " + DOPPLER_TOKEN:
            return self.send(401, {"messages": ["Invalid Auth token " + BODY_SECRET], "success": False})
        name = asked.get("name")
        if url.path != "/v3/configs/config/secret" or asked.get("project") != "app" or asked.get("config") != "prd" or name not in known:
            return self.send(404, {"messages": ["Could not find requested secret " + BODY_SECRET], "success": False})
        return self.send(200, {"name": name, "value": {"raw": known[name], "computed": known[name]}, "success": True})

    def do_POST(self):
        review = json.loads(self.body())
        good = review.get("spec", {}).get("token") in good_tokens
        user = {"username": "system:serviceaccount:default:postgres", "uid": "1", "groups": ["system:serviceaccounts"]}
        self.send(201, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": review.get("spec", {}),
                        "status": {"authenticated": good, **({"user": user} if good else {})}})

    def log_message(self, *_):
        pass


def main(certs):
    port = fault_kms.Server(Call, tls_server.tls_context(certs, "good")).begin()
    print(json.dumps({"port": port, "doppler_token": DOPPLER_TOKEN, "body_secret": BODY_SECRET}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        if "secret" in told:
            known[told["secret"][0]] = told["secret"][1]
        if "service_account_token" in told:
            good_tokens.add(told["service_account_token"])
        print("{}", flush=True)


main(sys.argv[1])
