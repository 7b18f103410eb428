#!/usr/bin/env bash
# The rehearsal of gin/recipes/launch_v5e.gin on a slice of tpu/pods/, from a laptop; what it reads has
# to be in BUCKET/demo, see there. What follows the bucket goes to `midjax launch`:
#   tpu/launch.sh v5e-16 my-project gs://my-bucket/runs --gin.Launch.name=try-1 --dry-run
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pod=$here/pods/${1:-}.env
if [ $# -lt 3 ] || [ ! -f "$pod" ]; then
  echo "tpu/launch.sh SLICE PROJECT gs://BUCKET ...; slices: $(ls "$here/pods")" >&2
  exit 2
fi
# shellcheck source=tpu/pods/v5e-16.env
. "$pod"
project=$2 bucket=$3
shift 3
exec midjax launch --gin_file=gin/recipes/launch_v5e.gin "--gin.Launch.slice=$SLICE" \
  "--gin.Launch.zone=$ZONE" "--gin.Launch.project=$project" "--gin.Launch.bucket=$bucket" "$@"
