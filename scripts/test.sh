#!/bin/sh
# `make test` (everything but the slow group) and `make test-slow`, in lanes side by side: most tests wait most of the
# time. Usage: test.sh [slow]
#
#   daemons   all but unit tests and contracts: real daemons. Two lanes, which share the tests (tests/lanes.py); the
#             next two lanes help with what is left when they have ended
#   plain     unit tests and contracts in plain Python
#   patched   unit tests and contracts in a process that gevent has patched, as the daemon's worker is
#   others    unit tests and the SQLite contract on Python 3.12 and 3.13, where they are found
#
#   slow      the slow group: three lanes, which share the tests
#   alone     then those that measure time or CPU so closely that nothing may run beside them (marked `alone`)
#
# All lanes share three emulators (tests/servers.py), but `alone`, which starts its own; each lane has a front of its own.
# What `plain` runs with Hypothesis' full number of examples, `patched` and `others` run with few.
#
# The first lane is shown while it runs, the others when all have ended. Separate processes, not pytest-xdist, which
# breaks when it is patched. PYTEST_ARGS is handed to each run on the tested version.
set -u
cd "$(dirname "$0")/.." || exit 1
bin=$(scripts/venv.sh tested)/bin || exit 1
logs=$(mktemp -d) || exit 1
trap 'rm -rf "$logs"' EXIT
mkdir "$logs/claims" || exit 1

run() { # in the background, so that a signal is heard at once and handed on
    "$@" &
    child=$!
    wait "$child"
}

servers= # process ids

start_servers() { # the emulators, for all lanes; they end with the last process that has descriptor 9 open
    mkfifo "$logs/end" || exit 1
    for name in pubsub datastore firestore; do
        mkfifo "$logs/$name" || exit 1
        "$bin/python" -m tests.servers "$name" <"$logs/end" >"$logs/$name" &
        servers="$servers $!"
    done
    exec 9>"$logs/end"
    run cat "$logs/pubsub" "$logs/datastore" "$logs/firestore" >"$logs/addresses"
    while read -r address; do
        export "${address?}"
    done <"$logs/addresses"
}

end_servers() {
    exec 9>&-
    [ -z "$servers" ] && return
    # shellcheck disable=SC2086
    kill $servers 2>/dev/null
    for server in $servers; do
        wait "$server"
    done
    servers=
    unset TEST_PUBSUB_EMULATOR TEST_DATASTORE_EMULATOR TEST_FIRESTORE_EMULATOR
}

tests() { # pytest on the tested version
    # shellcheck disable=SC2086  # PYTEST_ARGS is a list of words
    run "$bin/python" -m pytest -p no:cacheprovider -q --durations=15 --durations-min=8 "$@" ${PYTEST_ARGS:-}
    code=$?
    [ $code = 5 ] && [ -n "${PYTEST_ARGS:-}" ] && return 0 # it selects no test of this lane
    return $code
}

shared() { # tests that several lanes share; with `=`, or pytest takes the folder for a root
    tests -p tests.lanes "--lanes=$logs/claims" "$@"
}

daemons() {
    shared -m "not slow" --ignore=tests/unit --ignore=tests/contract
}

plain() { # then a lane of daemons: what is left of them would wait for two lanes while a core idles
    code=0
    tests -m "not slow" tests/unit tests/contract || code=$?
    daemons || code=$?
    return $code
}

patched() {
    code=0
    tests -p tests.patched --hypothesis-profile=few -m "not slow and not unpatched" tests/unit tests/contract || code=$?
    daemons || code=$?
    return $code
}

others() {
    used=$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    status=0
    for version in 3.12 3.13; do
        [ "$version" != "$used" ] || continue
        if ! scripts/find-python.sh "$version" >/dev/null; then
            echo "not tested: Python $version, which was not found"
            [ "${CI:-}" != true ] || status=1
            continue
        fi
        echo "Python $version"
        other=$(scripts/venv.sh "$version")/bin || { status=1; continue; }
        run "$other/python" -m pytest -p no:cacheprovider -q --hypothesis-profile=few -m "not slow" -k "unit or sqlite" \
            tests/unit tests/contract ||
            status=1
    done
    return $status
}

slow() {
    shared -m "slow and not alone" --ignore=tests/unit # to collect them takes longer than it should; none is slow
}

alone() {
    tests -m "slow and alone" --ignore=tests/unit
}

lane() { # lane NAME FUNCTION: in the background, into a file
    (
        child=
        trap '[ -z "$child" ] || { kill "$child"; wait "$child"; }; exit 143' TERM
        "$2"
    ) >"$logs/$1" 2>&1 &
    lanes="$lanes $1"
    pids="$pids $!"
}

show() { # what the lanes in the background have said
    for name in $lanes; do
        printf '\n== %s\n' "$name"
        cat "$logs/$name"
    done
}

lanes= pids= child= status=0
# An interrupt ends all lanes; each pytest ends the servers that it started.
interrupted() {
    trap '' INT TERM
    # shellcheck disable=SC2086
    kill $child $pids 2>/dev/null
    for pid in $child $pids; do
        wait "$pid"
    done
    show
    end_servers
    rm -rf "$logs"
    exit 130
}
trap interrupted INT TERM
start_servers
case "${1:-}" in
    slow)
        lane slow-2 slow
        lane slow-3 slow
        first=slow
        ;;
    *)
        lane daemons-2 daemons
        lane plain plain
        lane patched patched
        lane others others
        first=daemons
        ;;
esac
echo "== $first"
"$first" || status=1
for pid in $pids; do
    wait "$pid" || status=1
done
show
end_servers
if [ "${1:-}" = slow ]; then
    printf '\n== alone\n'
    alone || status=1
fi
[ $status = 0 ] || echo "make test${1:+-$1}: FAILED" >&2
exit $status
