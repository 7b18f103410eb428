#!/usr/bin/env bash
# One verb on a TPU machine by hand, with the slice's flags:
#   tpu/run.sh v5e-16 train --gin_file=gin/recipes/demo_midtrain.gin --gin.Data.batch_rows=16
# On a slice with several machines every one has to run it; `midjax launch` does that.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pod=$here/pods/${1:-}.env
if [ ! -f "$pod" ]; then
  echo "tpu/run.sh SLICE VERB ...: there is no slice '${1:-}' in tpu/pods/: $(ls "$here/pods")" >&2
  exit 2
fi
shift
set -a
# shellcheck source=tpu/pods/v5e-16.env
. "$pod"
set +a
export PYTHONUNBUFFERED=1 PATH="$here/../.venv/bin:$PATH"
# exec: SIGTERM reaches the trainer, which saves.
exec midjax "$@"
