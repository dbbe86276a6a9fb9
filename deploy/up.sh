#!/bin/sh
# `make up`: one node at http://127.0.0.1:$PORT that keeps its data in $DATA. Ctrl-C stops it.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "$DATA"
DATA=$(cd "$DATA" && pwd)
cat <<TEXT

  registry-cluster at http://127.0.0.1:$PORT, data in $DATA

  push an image:   docker tag IMAGE 127.0.0.1:$PORT/team/app:v1 && docker push 127.0.0.1:$PORT/team/app:v1
  or, without an engine:
                   skopeo copy --dest-tls-verify=false docker://SOME/IMAGE docker://127.0.0.1:$PORT/team/app:v1
  look at it:      curl http://127.0.0.1:$PORT/v2/_catalog
  stop it:         Ctrl-C

TEXT
export REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="$DATA" REGISTRY_HTTP_ADDR="127.0.0.1:$PORT"
exec .venv/bin/registry-cluster serve deploy/node.yml
