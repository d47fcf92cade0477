#!/bin/sh
# `make test`: everything but the slow group, in two lanes side by side.
#
#   lane 1   the whole suite in plain Python
#   lane 2   unit tests and contracts in a process that gevent has patched, as the daemon's worker is;
#            then the unit tests and the SQLite contract on the other supported Pythons, where they are found
#
# Two processes and not pytest-xdist, which breaks when it is patched. Lane 2 prints when it has ended.
# PYTEST_ARGS is handed to lane 1.
set -u
cd "$(dirname "$0")/.."
bin=$(scripts/venv.sh tested)/bin || exit 1
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT

run() { # in the background, so that a signal is heard at once and handed on
    "$@" &
    child=$!
    wait "$child"
}

lane2() {
    child=
    trap 'kill "$child" 2>/dev/null; wait "$child"; exit 143' TERM
    status=0
    echo "== unit tests and contracts in a process that gevent has patched"
    run "$bin/python" -m pytest -p tests.patched -p no:cacheprovider -q -m "not slow and not unpatched" \
        tests/unit tests/contract || status=1
    used=$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    for version in 3.12 3.13; do
        [ "$version" != "$used" ] || continue
        if ! scripts/find-python.sh "$version" >/dev/null; then
            echo "== not tested: Python $version, which was not found"
            [ "${CI:-}" != true ] || status=1
            continue
        fi
        other=$(scripts/venv.sh "$version")/bin || { status=1; continue; }
        echo "== unit tests and the SQLite contract on Python $version"
        run "$other/python" -m pytest -p no:cacheprovider -q -m "not slow" -k "unit or sqlite" \
            tests/unit tests/contract || status=1
    done
    return $status
}

lane2 >"$log" 2>&1 &
second=$!
# An interrupt ends both lanes; each pytest ends the emulators that it started.
trap 'kill "$second" 2>/dev/null; wait "$second"; rm -f "$log"; exit 130' INT TERM
status=0
# shellcheck disable=SC2086  # PYTEST_ARGS is a list of words
"$bin/python" -m pytest -m "not slow" ${PYTEST_ARGS:-} || status=1
wait "$second" || status=1
echo
cat "$log"
[ $status = 0 ] || echo "make test: FAILED" >&2
exit $status
