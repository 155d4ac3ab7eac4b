#!/bin/sh
# Makes the throw-away certificates of the tests in the directory DIR:
#   ca.pem               the CA that the tests trust
#   good.pem             127.0.0.1, ::1, localhost, *.slow.test, signed by it
#   expired.pem          the same names, expired in 2020
#   wrong_host.pem       for elsewhere.test only
#   other_ca.pem         another CA; other.pem and other_client.pem are signed by it
#   client.pem           client certificate, signed by the trusted CA
#   client_locked.key    its key under a passphrase;  garbage.pem  no certificate at all
#   lax_openssl.cnf      OPENSSL_CONF for a client that OpenSSL itself lets speak old TLS
# Every NAME.pem has a NAME.key. Nothing here protects anything.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
mkdir -p "$1"
cd "$1"

names='DNS:localhost,DNS:*.slow.test,IP:127.0.0.1,IP:::1'
new_key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'

make_ca() { # name
    # shellcheck disable=SC2086
    openssl req -x509 $new_key -keyout "$1.key" -out "$1.pem" -days 3650 -subj "/CN=envcrypt test $1" \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' 2>/dev/null
    rm -rf "$1.db"
    mkdir "$1.db"
    : >"$1.db/index"
    cat >"$1.db/conf" <<CONF
[ca]
default_ca = it
[it]
database = $1.db/index
new_certs_dir = $1.db
certificate = $1.pem
private_key = $1.key
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
CONF
}

issue() { # name, CA, extendedKeyUsage, subjectAltName, start, end
    # shellcheck disable=SC2086
    openssl req $new_key -keyout "$1.key" -out "$2.db/csr" -subj "/CN=$1" \
        -addext "extendedKeyUsage=$3" -addext "subjectAltName=$4" 2>/dev/null
    openssl ca -batch -notext -config "$2.db/conf" -in "$2.db/csr" -out "$1.pem" \
        -startdate "$5" -enddate "$6" 2>/dev/null
}

start=20200101000000Z
end=20491231235959Z
make_ca ca
make_ca other_ca
issue good ca serverAuth "$names" $start $end
issue expired ca serverAuth "$names" $start 20200201000000Z
issue wrong_host ca serverAuth 'DNS:elsewhere.test' $start $end
issue other other_ca serverAuth "$names" $start $end
issue client ca clientAuth 'DNS:client.test' $start $end
issue other_client other_ca clientAuth 'DNS:client.test' $start $end
openssl pkey -in client.key -aes256 -passout pass:secret -out client_locked.key
echo 'no certificate' >garbage.pem
rm -rf ca.db other_ca.db
cat >lax_openssl.cnf <<'CONF'
openssl_conf = it
[it]
ssl_conf = ssl
[ssl]
system_default = lax
[lax]
MinProtocol = TLSv1
CipherString = DEFAULT:@SECLEVEL=0
CONF
