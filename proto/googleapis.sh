#!/usr/bin/env bash
# Copies Google's protos out of the installed googleapis-common-protos to where buf.yaml looks for them, so that nothing
# is fetched and nothing vendored.
# Usage: PY=.venv/bin/python bash proto/googleapis.sh
set -euo pipefail
site=$($PY -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
google=.atlas/googleapis/google
rm -rf .atlas/googleapis && mkdir -p $google/api $google/rpc
cp "$site"/google/api/{annotations,http,httpbody}.proto $google/api/
cp "$site"/google/rpc/{error_details,status}.proto $google/rpc/
