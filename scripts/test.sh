#!/bin/sh
# `make test`: everything but the slow group, in three lanes side by side.
#
#   lane 1   all but unit tests and contracts: real daemons, which mostly wait
#   lane 2   unit tests and contracts in plain Python
#   lane 3   unit tests and contracts in a process that gevent has patched, as the daemon's worker is
#
# Lanes 2 and 3 go on with the unit tests and the SQLite contract on Python 3.12 and 3.13, where they are found.
#
# Three processes, not pytest-xdist, which breaks when it is patched. Lanes 2 and 3 print when they have ended.
# PYTEST_ARGS is handed to the first run of each lane.
set -u
cd "$(dirname "$0")/.."
bin=$(scripts/venv.sh tested)/bin || exit 1
logs=$(mktemp -d) || exit 1
trap 'rm -rf "$logs"' EXIT

run() { # in the background, so that a signal is heard at once and handed on
    "$@" &
    child=$!
    wait "$child"
}

other() { # unit tests and the SQLite contract on another Python
    used=$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ "$1" != "$used" ] || return 0
    if ! scripts/find-python.sh "$1" >/dev/null; then
        echo "== not tested: Python $1, which was not found"
        [ "${CI:-}" != true ]
        return
    fi
    other=$(scripts/venv.sh "$1")/bin || return 1
    echo "== unit tests and the SQLite contract on Python $1"
    run "$other/python" -m pytest -p no:cacheprovider -q -m "not slow" -k "unit or sqlite" tests/unit tests/contract
}

plain() {
    child=
    trap 'kill "$child" 2>/dev/null; wait "$child"; exit 143' TERM
    status=0
    echo "== unit tests and contracts in plain Python"
    # shellcheck disable=SC2086  # PYTEST_ARGS is a list of words
    run "$bin/python" -m pytest -p no:cacheprovider -q -m "not slow" ${PYTEST_ARGS:-} tests/unit tests/contract || status=1
    other 3.12 || status=1
    return $status
}

patched() {
    child=
    trap 'kill "$child" 2>/dev/null; wait "$child"; exit 143' TERM
    status=0
    echo "== unit tests and contracts in a process that gevent has patched"
    # shellcheck disable=SC2086
    run "$bin/python" -m pytest -p tests.patched -p no:cacheprovider -q -m "not slow and not unpatched" \
        ${PYTEST_ARGS:-} tests/unit tests/contract || status=1
    other 3.13 || status=1
    return $status
}

plain >"$logs/plain" 2>&1 &
second=$!
patched >"$logs/patched" 2>&1 &
third=$!
# An interrupt ends all lanes; each pytest ends the emulators that it started.
trap 'kill "$second" "$third" 2>/dev/null; wait "$second" "$third"; rm -rf "$logs"; exit 130' INT TERM
status=0
echo "== real daemons, and all that is neither a unit test nor a contract"
# shellcheck disable=SC2086
"$bin/python" -m pytest -m "not slow" --ignore=tests/unit --ignore=tests/contract ${PYTEST_ARGS:-} || status=1
wait "$second" || status=1
wait "$third" || status=1
echo
cat "$logs/plain"
echo
cat "$logs/patched"
[ $status = 0 ] || echo "make test: FAILED" >&2
exit $status
