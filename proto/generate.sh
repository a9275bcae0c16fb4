#!/usr/bin/env bash
# Makes DIR (gen/) from proto/: messages, stubs, their types, and the descriptor set that Envoy transcodes by.
# Usage: PY=.venv/bin/python bash proto/generate.sh DIR
set -euo pipefail
out=$1
site=$($PY -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
wkt=$($PY -c 'import grpc_tools, pathlib; print(pathlib.Path(grpc_tools.__file__).parent / "_proto")')
bin=$(dirname "$PY")
mapfile -t protos < <(cd proto && find atlas -name '*.proto' | LC_ALL=C sort)

rm -rf "$out" && mkdir -p "$out"
protoc() { $PY -m grpc_tools.protoc -Iproto -I"$site" -I"$wkt" "$@"; }
protoc --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" "${protos[@]}"
# google.rpc details must be in the descriptors, or Envoy prints an error with details as an empty body.
protoc --include_imports --descriptor_set_out="$out/descriptors.binpb" \
  "${protos[@]}" google/rpc/error_details.proto google/rpc/status.proto
