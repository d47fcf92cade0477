#!/usr/bin/env bash
# Install what the tests need beyond Python packages. Does nothing where all is there.
#
# Debian packages are installed as root only. gcloud with its emulators and Java come with the machine: what is
# missing of them is told here, and the tests that need it fail under CI=true.
set -uo pipefail
cd "$(dirname "$0")/.."

packages=()
need() { command -v "$1" >/dev/null 2>&1 || packages+=("$2"); } # need COMMAND PACKAGE
need make make
need git git
need ps procps
need systemd-analyze systemd
need nsenter util-linux
scripts/find-python.sh 3.11 >/dev/null || packages+=(python3.11 python3.11-venv)

if ((${#packages[@]})); then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${packages[*]}"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}" || exit 1
    else
        echo "missing, and not root on Debian: ${packages[*]}" >&2
        exit 1
    fi
fi

missing=()
command -v java >/dev/null 2>&1 || missing+=("java (17 or later)")
if command -v gcloud >/dev/null 2>&1; then
    sdk=$(dirname "$(dirname "$(readlink -f "$(command -v gcloud)")")")
    for emulator in pubsub-emulator cloud-datastore-emulator cloud-firestore-emulator; do
        [ -d "$sdk/platform/$emulator" ] || missing+=("$emulator")
    done
else
    missing+=("gcloud")
fi
for version in 3.12 3.13; do
    scripts/find-python.sh "$version" >/dev/null || missing+=("Python $version")
done
for part in "${missing[@]+"${missing[@]}"}"; do
    echo "not here: $part"
done
exit 0
