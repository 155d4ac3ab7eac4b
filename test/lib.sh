# What test/run, test/demo and test/bench share: the user that servers run as, a place for their files, and the end of all
# that was started. Sourced from the top of the checkout.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"

# PostgreSQL refuses to run as root. The user must reach the files, so a checkout that it cannot enter (below /root,
# say) sends everything to a temporary folder, what the tests read included: $readable/test, $readable/expected, $readable/doc.
work=$top/build
readable=$top
if [ "$(id -u)" = 0 ]; then
    server_user=$(id -un postgres 2>/dev/null || echo nobody)
    server_group=$(id -gn "$server_user")
    as_server() { setpriv --reuid="$server_user" --regid="$server_group" --clear-groups -- "$@"; }
    # for the background: the process is then the server's own, and $! its pid
    exec_as_server() { exec setpriv --reuid="$server_user" --regid="$server_group" --clear-groups -- "$@"; }
    as_server test -x "$top" || work=
else
    server_user=$(id -un)
    as_server() { "$@"; }
    exec_as_server() { exec "$@"; }
fi
temporary=
if [ -z "$work" ]; then
    work=$(mktemp -d "${TMPDIR:-/tmp}/envcrypt.XXXXXX") temporary=$work readable=$work
    cp -r test expected doc "$work/"
    chmod -R a+rX "$work"
fi
mkdir -p "$work"
chmod 755 "$work"
# two runs in one checkout would meet in these files; the lock ends with the shell
exec {lock}>"$work/lock"
flock -n "$lock" || { echo "another run in this checkout goes on" >&2; exit 1; }

# A new folder that the server's user owns.
server_dir() { rm -rf "$1"; mkdir -p "$1"; chown "$server_user" "$1"; }

# Sockets want short paths.
sockets=$(mktemp -d "${TMPDIR:-/tmp}/ec.XXXXXX")
chown "$server_user" "$sockets"

started=()
at_exit() {
    local pid file
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
    # servers of a test that was interrupted
    for file in $(find "$work" "$sockets" -name postmaster.pid 2>/dev/null); do
        pid=$(head -1 "$file")
        if [ "$(readlink "/proc/$pid/cwd")" = "$(dirname "$file")" ]; then kill -QUIT "$pid" 2>/dev/null || true; fi
    done
    rm -rf "$sockets" ${temporary:+"$temporary"}
}
trap at_exit EXIT
trap 'exit 130' INT TERM

pg_config_path() {
    if [ -n "${PG_CONFIG:-}" ]; then echo "$PG_CONFIG"; return; fi
    ls -d /usr/lib/postgresql/*/bin/pg_config 2>/dev/null | sort -V | tail -1
}
