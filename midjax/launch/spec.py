# SPDX-License-Identifier: Apache-2.0
"""The root of the verb `launch`: one run on Cloud TPU."""

import dataclasses
import re
from typing import Literal

from midjax.hardware import flags as flags_lib
from midjax.hardware import slices

Backend = Literal["vm", "qr", "gke"]

_NAME = re.compile(r"[a-z][-a-z0-9]{0,38}", flags=re.ASCII)
_ZONE = re.compile(r"[a-z]+-[a-z]+\d+-[a-z]", flags=re.ASCII)
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[\w.=-]+)*", flags=re.ASCII)
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", flags=re.ASCII)
_ACCOUNT = re.compile(r"[\w.-]+@[\w.-]+", flags=re.ASCII)
_IMAGE = re.compile(r"[a-z0-9][\w./:@-]+", flags=re.ASCII)
_RECIPE = re.compile(r"[\w][\w./-]*\.gin", flags=re.ASCII)
_OVERRIDE = re.compile(r"[A-Za-z_][\w/]*(\.[A-Za-z_]\w*)?=[^\r\n]+", flags=re.ASCII)
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}", flags=re.ASCII)
_LABEL = re.compile(r"[a-z0-9_-]{0,63}", flags=re.ASCII)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*", flags=re.ASCII)
_SECRET = re.compile(r"[A-Za-z0-9_-]{1,255}", flags=re.ASCII)
_DURATION = re.compile(r"[1-9]\d*[smhd]", flags=re.ASCII)
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "_KEY")
# Labels that midjax sets itself.
OWN_LABELS = ("run", "attempt", "first")
# The override that says where a run lives; without one it lives in the bucket.
_RUN_DIR = "Train.run_dir="

# chip -> runtime of its virtual machines: cloud.google.com/tpu/docs/runtimes.
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


class LaunchError(ValueError):
    """A launch that cannot be, or one that ended and must not be tried again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """One run on Cloud TPU.

    Attributes:
      name: of the run: its folder in the bucket, its queued resource, its JobSet.
      recipe: of `midjax train`, as it is given on a laptop, relative to `code`.
      overrides: of the recipe, `Class.field=value` each, as after `--gin.`. `{bucket}` in a value
        is `bucket`. Without `Train.run_dir` the run lives in the bucket.
      slice: "v5e-16", "2xv5p-128": see midjax/hardware/slices.py.
      zone: of the slice.
      project: Google Cloud project.
      bucket: "gs://BUCKET" or a folder in one; everything of the run is in its folder NAME.
      backend: "vm" (queued resource, a detached unit started over ssh), "qr" (the queued resource's
        startup script, which comes back after a reboot) or "gke" (JobSet).
      code: folder of a git repository, whose last commit the workers of "vm" and "qr" install.
      image: container image with midjax and the recipes in it; needed by "gke", else in the place
        of `code`.
      spot: take capacity that may be taken away again.
      labels: more labels of the queued resource or the JobSet.
      service_account: of the workers: an address, or for "gke" a Kubernetes service account. It
        needs the bucket, and the secrets.
      env: further variables. Never secrets: they would be seen in every listing.
      secrets: variable -> name of a secret. "vm" and "qr" read it from Secret Manager on the
        worker; "gke" from the Kubernetes secret of that name, whose key is the variable.
      valid_until: how long to wait for capacity, "6h"; None is for ever.
      max_restarts: after preemptions and failures that a restart can mend.
      grace_seconds: between SIGTERM and SIGKILL. GKE gives spot pods 15, later versions up to 120.
      save_seconds: what the run needs to save its state; must fit into `grace_seconds`.
      compiler_flags: more flags of the TPU's compiler, `--xla_...=value`, or other values for those
        of midjax/hardware/flags.py.
      mixture_of_experts: whether the recipe's model has experts: it takes the flags of such a one.
      runtime_version: of the virtual machines; None is the chip's own.
      cluster: of GKE.
      cluster_location: zone or region of the cluster; None is the region of `zone`.
      queue: Kueue's local queue, "multislice-queue" in xpk's clusters; None submits without Kueue.
      poll_seconds: between two looks of `watch`.
      silent_seconds: a worker that has not been heard of for so long is taken for lost.
      allow_cross_region: why the bucket may be in another region than the slice: reads cost money,
        and are slow.
      folder: local folder of generated files; NAME is made in it.
    """

    name: str
    recipe: str
    slice: str
    zone: str
    project: str
    bucket: str
    overrides: tuple[str, ...] = ()
    backend: Backend = "vm"
    code: str = "."
    image: str | None = None
    spot: bool = False
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    service_account: str | None = None
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    secrets: dict[str, str] = dataclasses.field(default_factory=dict)
    valid_until: str | None = None
    max_restarts: int = 20
    grace_seconds: int = 120
    save_seconds: int = 60
    compiler_flags: str = ""
    mixture_of_experts: bool = False
    runtime_version: str | None = None
    cluster: str | None = None
    cluster_location: str | None = None
    queue: str | None = None
    poll_seconds: float = 60.0
    silent_seconds: float = 900.0
    allow_cross_region: str | None = None
    folder: str = "build/launch"

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_overrides()
        self._check_variables()
        self._check_numbers()
        self._check_backend()
        slices.parse(self.slice)
        self.flags  # noqa: B018  or is refused

    def _check_texts(self) -> None:
        for field, pattern, form in (
            ("name", _NAME, "a small letter, then up to 38 of a-z, 0-9 and '-'"),
            ("zone", _ZONE, "a zone such as us-west4-a"),
            ("project", _PROJECT, "the id of a project, such as my-project-1"),
            ("bucket", _BUCKET, "gs://BUCKET or gs://BUCKET/FOLDER, without a '/' at its end"),
            ("recipe", _RECIPE, "the relative path of a .gin file"),
            (
                "image",
                _IMAGE,
                "a container image, such as REGION-docker.pkg.dev/PROJECT/REPO/IMAGE",
            ),
            ("service_account", _ACCOUNT if self.backend != "gke" else _NAME, "its address"),
            ("valid_until", _DURATION, "a duration such as 6h"),
            ("cluster", _NAME, "the name of a GKE cluster"),
            ("queue", _NAME, "the name of a Kueue queue"),
            ("runtime_version", re.compile(r"[a-z0-9][a-z0-9.-]*"), "a runtime of TPU VMs"),
            ("cluster_location", re.compile(r"[a-z]+-[a-z]+\d+(-[a-z])?"), "a zone or region"),
        ):
            value = getattr(self, field)
            if value is not None and not pattern.fullmatch(value):
                raise LaunchError(f"Launch.{field} = {value!r} is not {form}.")

    def _check_overrides(self) -> None:
        for line in self._overrides:
            if line.startswith("--") or not _OVERRIDE.fullmatch(line):
                raise LaunchError(
                    f"Launch.overrides: {line!r} is not Class.field=value, as after --gin."
                )
            if line.startswith(_RUN_DIR) and not line.removeprefix(_RUN_DIR).startswith("gs://"):
                raise LaunchError(
                    f"Launch.overrides: {line}: the disk of a TPU machine is gone with it. Name a "
                    f"folder in a bucket, or leave it out for {self.place}/run."
                )

    def _check_variables(self) -> None:
        for name in (*self.env, *self.secrets):
            if not _VARIABLE.fullmatch(name):
                raise LaunchError(f"{name!r} is no name of an environment variable: A-Z, 0-9, '_'.")
        for name, value in self.env.items():
            if any(word in name for word in _SECRET_WORDS):
                raise LaunchError(
                    f"Launch.env has {name}, which looks like a secret, and env is printed. Store "
                    "it in Secret Manager, or as a Kubernetes secret, and name that: "
                    f'Launch.secrets = {{"{name}": "NAME_OF_THE_SECRET"}}.'
                )
            if "\n" in value:
                raise LaunchError(f"Launch.env: the value of {name} has more than one line.")
        for name, secret in self.secrets.items():
            if name in self.env or not _SECRET.fullmatch(secret):
                # The value is not repeated: it may be the secret itself.
                raise LaunchError(
                    f"Launch.secrets: {name} must be the name of a secret (A-Z, a-z, 0-9, '-', "
                    "'_'), never its value, and must not be in Launch.env too."
                )
        for key, value in self.labels.items():
            if key in OWN_LABELS or not _LABEL_KEY.fullmatch(key) or not _LABEL.fullmatch(value):
                raise LaunchError(
                    f"Launch.labels: {key}={value}: keys and values have a-z, 0-9, '_' and '-', at "
                    f"most 63, and {', '.join(OWN_LABELS)} are midjax's own."
                )

    def _check_numbers(self) -> None:
        if self.max_restarts < 0 or self.poll_seconds <= 0 or self.silent_seconds <= 0:
            raise LaunchError(
                "Launch: max_restarts must be 0 or more, poll_seconds and silent_seconds more than "
                f"0, got {self.max_restarts}, {self.poll_seconds} and {self.silent_seconds}."
            )
        if not 0 < self.save_seconds <= self.grace_seconds:
            raise LaunchError(
                f"Launch.grace_seconds = {self.grace_seconds} is less than save_seconds = "
                f"{self.save_seconds}: the run would be killed while it saves. On spot capacity "
                "rely on frequent saves, and ask for no more than what is granted."
            )

    def _check_backend(self) -> None:
        if self.backend == "gke" and not (self.cluster and self.image):
            raise LaunchError(
                "Launch.backend = 'gke' needs Launch.cluster, and Launch.image with midjax and the "
                "recipes in it: tpu/Dockerfile builds one."
            )
        if self.backend != "gke" and not slices.parse(self.slice).has_default_torus:
            raise LaunchError(
                f"Launch.slice = {self.slice!r}: a queued resource has the default torus of its "
                "size. Name the size, or use backend 'gke'."
            )

    @property
    def tpu(self) -> slices.Slice:
        """The slice."""
        return slices.parse(self.slice)

    @property
    def region(self) -> str:
        return self.zone.rpartition("-")[0]

    @property
    def location(self) -> str:
        """Of the cluster."""
        return self.cluster_location or self.region

    @property
    def place(self) -> str:
        """The run's folder in the bucket."""
        return f"{self.bucket}/{self.name}"

    @property
    def runtime(self) -> str:
        return self.runtime_version or RUNTIMES[self.tpu.chip.name]

    @property
    def flags(self) -> tuple[flags_lib.Flag, ...]:
        """Flags of the compiler: the chip's table and what the recipe adds."""
        table = flags_lib.flags(self.tpu.chip.name, dense=not self.mixture_of_experts)
        return flags_lib.merge(table, self.compiler_flags)

    @property
    def arguments(self) -> tuple[str, ...]:
        """`train --gin_file=...`: what stands after `midjax`, here and on a laptop."""
        given = self._overrides
        if not any(line.startswith(_RUN_DIR) for line in given):
            given = (*given, f"{_RUN_DIR}{self.place}/run")
        return ("train", f"--gin_file={self.recipe}", *(f"--gin.{line}" for line in given))

    @property
    def _overrides(self) -> tuple[str, ...]:
        return tuple(line.replace("{bucket}", self.bucket) for line in self.overrides)

    @property
    def all_labels(self) -> dict[str, str]:
        return {"run": self.name, **self.labels}
