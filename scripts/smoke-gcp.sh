#!/bin/sh
# Try psq and psqd against the real Pub/Sub and Datastore, in two minutes: what works, and how fast.
#
#   scripts/smoke-gcp.sh PROJECT [--storage none] [--endpoint HOST] [--tasks N] [--keep]
#
# Before: `gcloud auth application-default login`, and the APIs switched on (docs/google-cloud.md). It makes one topic,
# one subscription and a few thousand small entities with names of its own (psq-smoke-…), and deletes them at the end,
# also when it fails or is interrupted. What it carries costs a cent or so, if anything. Exit code 0: all was as promised.
set -eu
cd "$(dirname "$0")/.."
venv=$(scripts/venv.sh newest run)
exec "$venv/bin/python" scripts/smoke_gcp.py "$@"
