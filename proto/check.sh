#!/usr/bin/env bash
# Protobuf rules, offline: lint, format, nothing broken since proto/released.binpb (`make release-protos`), gen/ fresh.
# Usage: PY=.venv/bin/python bash proto/check.sh
set -euo pipefail
buf=$(dirname "$PY")/buf
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
export HOME=$tmp

PY=$PY bash proto/googleapis.sh
"$buf" lint
"$buf" format --diff --exit-code proto
"$buf" build . -o "$tmp/now.binpb"
"$buf" breaking "$tmp/now.binpb" --against proto/released.binpb
PY=$PY bash proto/generate.sh "$tmp/gen"
diff -r -x __pycache__ "$tmp/gen" gen >/dev/null || { echo "gen/ is stale: run make gen and commit it." >&2; exit 1; }
