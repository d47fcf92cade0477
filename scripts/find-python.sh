#!/bin/sh
# Print a Python that can make virtual environments. Usage: find-python.sh VERSION [VERSION…], the first found wins.
#
# Looks at the commands on PATH and at the interpreters of pyenv and uv. A command counts only if it runs, says
# the version that was asked for and has venv and ensurepip: pyenv leaves commands on PATH that only print an
# error, and Debian's python3 comes without ensurepip.
set -u
for version in "$@"; do
    for candidate in "python$version" python3 python \
        "${PYENV_ROOT:-${HOME:-/nonexistent}/.pyenv}"/versions/"$version"*/bin/python \
        "${XDG_DATA_HOME:-${HOME:-/nonexistent}/.local/share}"/uv/python/cpython-"$version"*/bin/python; do
        found=$("$candidate" -c '
import sys
if "%d.%d" % sys.version_info[:2] != sys.argv[1]:
    sys.exit(1)
import ensurepip, venv
print(sys.executable)' "$version" 2>/dev/null) || continue
        [ -n "$found" ] && printf '%s\n' "$found" && exit 0
    done
done
exit 1
