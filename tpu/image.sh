#!/usr/bin/env bash
# Builds the image of the last commit and pushes it: tpu/image.sh REGION-docker.pkg.dev/PROJECT/REPO/midjax
# The registry should be in the region of the slice, and private: what is baked in, its readers have.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=${1:?tpu/image.sh IMAGE, without a tag}
sha=$(git rev-parse --short=12 HEAD)
git archive --format=tar HEAD |
  docker build --file=tpu/Dockerfile --build-arg="GIT_SHA=$sha" --tag="$name:$sha" -
docker push "$name:$sha"
echo "$name:$sha"
