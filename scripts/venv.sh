#!/bin/sh
# Make a virtual environment with psq and psqd; print its folder.
# Usage: venv.sh newest|tested|VERSION [run|dev]
#
# "tested" is the version that the whole test suite runs on, or the newest one where it is missing. "run" installs
# requirements.txt, all that psqd needs; "dev" (the default) constraints.txt, with what tests and checks need beside.
# Both go by hash, through pip with its own settings. The first environment is .venv; others, of another version, are
# .venv-VERSION. Done once: a stamp of what went in makes the next call take no time.
set -eu
cd "$(dirname "$0")/.."
supported="3.13 3.12 3.11"
tested=3.11

case "$1" in
    newest) wanted=$supported ;;
    tested) wanted="$tested $supported" ;;
    *) wanted=$1 ;;
esac
case "${2:-dev}" in
    run) profiles="run dev" lock=requirements.txt ;;
    dev) profiles="dev" lock=constraints.txt ;;
    *) echo "venv.sh: run or dev, not $2" >&2; exit 2 ;;
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
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
version=$(version_of "$python")
if [ "$1" = tested ] && [ "$version" != "$tested" ]; then
    echo "Python $tested not found: testing on $version" >&2
    [ "${CI:-}" != true ] || exit 1
fi

folder=.venv
if [ -e .venv ] && [ "$(version_of .venv/bin/python || true)" != "$version" ]; then
    folder=.venv-$version
fi

content=$(cat requirements.txt constraints.txt pyproject.toml setup.py | cksum)" $(pwd)"
up_to_date() {
    for profile in $profiles; do
        [ "$(cat "$folder/.stamp-$profile" 2>/dev/null)" != "$content" ] || return 0
    done
    return 1
}
if ! up_to_date; then
    exec 9>".venv.lock" # two make runs at once: one of them does the work
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    if ! up_to_date; then
        echo "Setting up $folder with $("$python" --version), a minute or so …" >&2
        [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
        pip() { "$folder/bin/python" -m pip -qq --disable-pip-version-check "$@" >&2; }
        pip install --require-hashes -r "$lock"
        pip install --no-deps --no-build-isolation -e .
        printf '%s' "$content" >"$folder/.stamp-${2:-dev}"
    fi
fi
printf '%s\n' "$folder"
