#!/bin/sh
# Write requirements.txt (what psqd needs) and constraints.txt (that, and what development needs) anew, with hashes.
# One file serves all supported Pythons. It names no index: pip's own settings say where packages come from.
set -eu
cd "$(dirname "$0")/.."
uv=$(scripts/venv.sh tested)/bin/uv
compile() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-emit-find-links --custom-compile-command "make lock" "$@"
}
compile pyproject.toml --extra dev --upgrade --output-file constraints.txt
# setuptools: an editable install without build isolation needs it
echo setuptools | compile pyproject.toml - --constraints constraints.txt --output-file requirements.txt
