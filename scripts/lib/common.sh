# shellcheck shell=bash disable=SC2034
# common.sh - what the scripts share. Sourced, never run.
#
# Every script opens with a comment block that is also its --help, works from any directory, keeps its own files in
# the user's cache folder, and talks on stderr, so that stdout holds results only.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${CHOIR_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME or CHOIR_CACHE must be set}/.cache}/choir}
JOBS=${CHOIR_JOBS:-$(nproc 2>/dev/null || echo 2)}

say() { printf '%s\n' "== $*" >&2; }
warn() { printf '%s\n' "warning: $*" >&2; }
die() {
    printf '%s\n' "error: $*" >&2
    exit 1
}

# Prints the comment block at the top of the running script and leaves, if the first argument asks for it.
help_if_asked() {
    case ${1:-} in
    -h | --help)
        awk 'NR == 1 { next } /^#/ { sub(/^# ?/, ""); print; next } { exit }' "$0"
        exit 0
        ;;
    esac
}

have() { command -v "$1" >/dev/null 2>&1; }

# quiet LOG COMMAND...: runs it with its output in LOG, which is shown only when the command fails.
quiet() {
    local log=$1
    shift
    mkdir -p "$(dirname "$log")"
    if ! "$@" >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        die "failed: $* (whole output: $log)"
    fi
}

# with_lock NAME COMMAND...: one process of this user at a time.
with_lock() {
    local name=$1
    shift
    mkdir -p "$CACHE/locks"
    (
        if ! flock -n 9; then
            say "waiting for another run ($name)"
            flock 9
        fi
        "$@"
    ) 9>"$CACHE/locks/$name"
}

venv_make() {
    local folder=$1 requirements=$2
    [ -e "$folder/.complete" ] && return
    say "making a Python environment in $folder"
    rm -rf "$folder"
    mkdir -p "$(dirname "$folder")"
    python3 -m venv "$folder" || die "python3 -m venv failed: install python3-venv (scripts/install-deps --test does)"
    quiet "$folder/pip.log" "$folder/bin/python" -m pip install --disable-pip-version-check -r "$requirements"
    touch "$folder/.complete"
}
# venv_ready FOLDER REQUIREMENTS: a Python environment holding what the file lists. The folder's name carries a hash of
# the file, so that a changed list makes a new one.
venv_ready() { with_lock "venv-$(basename "$1")" venv_make "$@"; }

# What tests find in their environment: the default model's file, and a Python with the openai client and pytest.
test_environment() {
    local requirements=$ROOT/tests/requirements.txt venv
    CHOIR_TEST_MODEL=$("$ROOT/scripts/get-model" gemma3-270m | tail -n 1)
    venv=$CACHE/venv/test-$(sha256sum <"$requirements" | cut -c1-12)
    venv_ready "$venv" "$requirements"
    export CHOIR_TEST_MODEL CHOIR_TEST_PYTHON=$venv/bin/python
}

# pip of this machine, or of a small environment of our own where Python came without one.
pip_run() {
    if python3 -m pip --version >/dev/null 2>&1; then
        python3 -m pip --disable-pip-version-check "$@"
        return
    fi
    : >"$CACHE/pip-only.txt"
    venv_ready "$CACHE/venv/pip" "$CACHE/pip-only.txt"
    "$CACHE/venv/pip/bin/python" -m pip --disable-pip-version-check "$@"
}

# A TCP port of 127.0.0.1 that is free now: the given one if it is, else any.
free_port() {
    python3 - "$1" <<'PY'
import socket, sys
for port in (int(sys.argv[1]), 0):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(s.getsockname()[1])
        break
PY
}
