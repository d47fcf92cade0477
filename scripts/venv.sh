#!/bin/sh
# Make a virtual environment with psq, psqd and all that development needs; print its folder.
# Usage: venv.sh newest | tested | VERSION
#
# "tested" is the version that the whole test suite runs on, or the newest one where it is missing. The first
# environment is .venv; others, of another version, are .venv-VERSION. Everything comes from constraints.txt, by hash,
# through pip with its own settings. Done once: a stamp of what went in makes the next call take no time.
set -eu
cd "$(dirname "$0")/.."
supported="3.13 3.12 3.11"
tested=3.11

case "$1" in
    newest) wanted=$supported ;;
    tested) wanted="$tested $supported" ;;
    *) wanted=$1 ;;
esac
# shellcheck disable=SC2086  # a list of words
if ! python=$(scripts/find-python.sh $wanted); then
    {
        echo "No usable Python found: one of $wanted is needed, with the venv module."
        echo "  Debian, Ubuntu:  apt install python3 python3-venv"
        echo "  Fedora:          dnf install python3"
        echo "  anywhere:        pyenv install 3.13    or    uv python install 3.13"
    } >&2
    exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$1" = tested ] && [ "$version" != "$tested" ]; then
    echo "Python $tested not found: testing on $version" >&2
    [ "${CI:-}" != true ] || exit 1
fi

folder=.venv
if [ -e .venv ] && [ "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$version" ]; then
    folder=.venv-$version
fi

wanted_stamp=$(cat constraints.txt pyproject.toml setup.py | cksum)" $(pwd)"
up_to_date() {
    [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$wanted_stamp" ] && "$folder/bin/python" -c 'import gevent, psqd' 2>/dev/null
}
if ! up_to_date; then
    exec 9>".venv.lock" # two make runs at once: one of them does the work
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    if ! up_to_date; then
        echo "Setting up $folder with $("$python" --version) …" >&2
        [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt >&2
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
        printf '%s' "$wanted_stamp" >"$folder/.stamp"
    fi
fi
printf '%s\n' "$folder"
