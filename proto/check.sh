#!/usr/bin/env bash
# Protobuf rules, offline: lint, format, nothing broken since proto/released.binpb (`make release-protos`), gen/ fresh.
# Google's protos are copied out of the installed googleapis-common-protos, so nothing is fetched and nothing vendored.
# Usage: PY=.venv/bin/python bash proto/check.sh
set -euo pipefail
site=$($PY -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
buf=$(dirname "$PY")/buf
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
export HOME=$tmp

google=.atlas/googleapis/google
rm -rf .atlas/googleapis && mkdir -p $google/api $google/rpc
cp "$site"/google/api/{annotations,http,httpbody}.proto $google/api/
cp "$site"/google/rpc/{error_details,status}.proto $google/rpc/

"$buf" lint
"$buf" format --diff --exit-code proto
"$buf" build . -o "$tmp/now.binpb"
"$buf" breaking "$tmp/now.binpb" --against proto/released.binpb
PY=$PY bash proto/generate.sh "$tmp/gen"
diff -r -x __pycache__ "$tmp/gen" gen >/dev/null || { echo "gen/ is stale: run make gen and commit it." >&2; exit 1; }
