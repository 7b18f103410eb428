# SPDX-License-Identifier: Apache-2.0
"""Whether a bucket lies where the slice is: reads from elsewhere cost money, and are slow."""

from collections.abc import Iterable

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


def commands(config: spec.Launch, reads: Iterable[str] = ()) -> list[runner_lib.Command]:
    """Ask where the run's bucket is, and then where those are that it reads from."""
    places = [config.bucket, *reads]
    return [_command(config, name) for name in dict.fromkeys(map(_bucket, places))]


def _bucket(place: str) -> str:
    return "/".join(place.split("/")[:3])


def _command(config: spec.Launch, bucket: str) -> runner_lib.Command:
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


def check(config: spec.Launch, runner: runner_lib.Runner, reads: Iterable[str] = ()) -> list[str]:
    """Compares the locations of the run's bucket, and of those it reads, with the slice's region.

    Returns:
      A sentence for people on each.

    Raises:
      LaunchError: one is elsewhere, and the recipe does not say why; or the run's own cannot be
        looked at. Of a bucket of others that may be so: who may read it may not describe it.
    """
    if not runner.has("gcloud"):
        return [
            f"not checked, as gcloud is not installed: that {config.bucket} is in {config.region}"
        ]
    own, *others = commands(config, reads)
    said = [_compared(config, config.bucket, runner_lib.must(runner, own).out.strip())]
    for command in others:
        bucket, done = command.argv[4], runner.run(command.argv)
        if done.code:
            said.append(f"not checked, that {bucket} is in {config.region}: {done.err.strip()}")
        else:
            said.append(_compared(config, bucket, done.out.strip()))
    return said


def _compared(config: spec.Launch, bucket: str, location: str) -> str:
    if holds(location, config.region):
        return f"{bucket} is in {location}, which has {config.region}"
    text = f"{bucket} is in {location}, and the slice in {config.region} ({config.zone})"
    if config.allow_cross_region:
        return f"{text}: allowed, as {config.allow_cross_region}"
    raise spec.LaunchError(
        f"{text}: every byte that the run reads and saves would cross, which costs money and time. "
        f"Take a bucket in {config.region} or another zone; or give the reason in "
        "Launch.allow_cross_region."
    )
