# SPDX-License-Identifier: Apache-2.0
"""Whether a bucket lies where the slice is: reads from elsewhere cost money, and are slow."""

from midjax.launch import runner as runner_lib
from midjax.launch import spec

# cloud.google.com/storage/docs/locations: continents, and pairs of regions.
_CONTINENTS = {"US": "us-", "EU": "europe-", "ASIA": "asia-"}
_PAIRS = {
    "ASIA1": ("asia-northeast1", "asia-northeast2"),
    "EUR4": ("europe-north1", "europe-west4"),
    "EUR5": ("europe-west1", "europe-west2"),
    "EUR7": ("europe-west2", "europe-west3"),
    "EUR8": ("europe-west3", "europe-west6"),
    "NAM4": ("us-central1", "us-east1"),
}


def command(config: spec.Launch) -> runner_lib.Command:
    """Asks where the bucket is."""
    bucket = "/".join(config.bucket.split("/")[:3])
    return runner_lib.Command(
        argv=("gcloud", "storage", "buckets", "describe", bucket, "--format=value(location)"),
        why=f"the bucket has to be in {config.region}, beside the slice",
    )


def holds(location: str, region: str) -> bool:
    """Whether a bucket's location, one region or several, has a region."""
    location = location.strip().upper()
    if location in _CONTINENTS:
        return region.startswith(_CONTINENTS[location])
    return region in _PAIRS.get(location, (location.lower(),))


def check(config: spec.Launch, runner: runner_lib.Runner) -> str:
    """Compares the bucket's location with the slice's region.

    Returns:
      A sentence for people.

    Raises:
      LaunchError: it is elsewhere, and the recipe does not say why; or it cannot be looked at.
    """
    if not runner.has("gcloud"):
        return (
            f"not checked, as gcloud is not installed: that {config.bucket} is in {config.region}"
        )
    location = runner_lib.must(runner, command(config)).out.strip()
    if holds(location, config.region):
        return f"{config.bucket} is in {location}, which has {config.region}"
    text = f"{config.bucket} is in {location}, and the slice in {config.region} ({config.zone})"
    if config.allow_cross_region:
        return f"{text}: allowed, as {config.allow_cross_region}"
    raise spec.LaunchError(
        f"{text}: every byte that the run reads and saves would cross, which costs money and time. "
        f"Take a bucket in {config.region} or another zone; or give the reason in "
        "Launch.allow_cross_region."
    )
