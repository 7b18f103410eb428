# SPDX-License-Identifier: Apache-2.0
"""A strict schema of the JobSets that midjax writes, and rules that no schema can say.

Kubernetes drops unknown fields in silence and takes some wrong values; so whatever is not listed
here is an error, before anything is submitted.
"""

import dataclasses
import math
from typing import Any

from midjax.hardware import slices
from midjax.launch import exits, jobset, spec


@dataclasses.dataclass(frozen=True)
class Map:
    """A mapping: required and optional keys, each with its schema; or any keys of one schema."""

    required: dict[str, Any] = dataclasses.field(default_factory=dict)
    optional: dict[str, Any] = dataclasses.field(default_factory=dict)
    any_key: Any = None


@dataclasses.dataclass(frozen=True)
class List:
    """A list of at least one item."""

    item: Any


@dataclasses.dataclass(frozen=True)
class Is:
    """One of some values."""

    values: tuple[Any, ...]


_TEXTS = Map(any_key=str)
_CHIPS = Map(required={"google.com/tpu": int})
_REFERENCE = Map(
    optional={
        "secretKeyRef": Map(required={"name": str, "key": str}),
        "fieldRef": Map(required={"fieldPath": str}),
    }
)
_CONTAINER = Map(
    required={
        "name": str,
        "image": str,
        "command": List(str),
        "env": List(Map(required={"name": str}, optional={"value": str, "valueFrom": _REFERENCE})),
        "securityContext": Map(required={"privileged": bool}),
        "resources": Map(required={"requests": _CHIPS, "limits": _CHIPS}),
        "volumeMounts": List(Map(required={"name": str, "mountPath": str})),
    }
)
_VOLUME = Map(
    required={"name": str},
    optional={
        "configMap": Map(required={"name": str}),
        "emptyDir": Map(optional={"medium": Is(("Memory",))}),
    },
)
_POD = Map(
    required={
        "restartPolicy": Is(("Never",)),  # podFailurePolicy is refused with any other
        "terminationGracePeriodSeconds": int,
        "hostNetwork": Is((True,)),
        "dnsPolicy": Is(("ClusterFirstWithHostNet",)),
        "nodeSelector": _TEXTS,
        "tolerations": List(Map(required={"key": str, "operator": Is(("Exists",))})),
        "containers": List(_CONTAINER),
        "volumes": List(_VOLUME),
    },
    optional={"serviceAccountName": str},
)
_ON_EXIT = Map(
    required={"containerName": str, "operator": Is(("In", "NotIn")), "values": List(int)}
)
_JOB = Map(
    required={
        "parallelism": int,
        "completions": int,
        "completionMode": Is(("Indexed",)),
        "backoffLimit": Is((0,)),
        "podFailurePolicy": Map(
            required={
                "rules": List(Map(required={"action": Is(("FailJob",)), "onExitCodes": _ON_EXIT}))
            }
        ),
        "template": Map(required={"metadata": Map(required={"labels": _TEXTS}), "spec": _POD}),
    }
)
SCHEMA = Map(
    required={
        "apiVersion": Is((jobset.API_VERSION,)),
        "kind": Is(("JobSet",)),
        "metadata": Map(required={"name": str, "labels": _TEXTS, "annotations": _TEXTS}),
        "spec": Map(
            required={
                "failurePolicy": Map(
                    required={
                        "maxRestarts": int,
                        "rules": List(
                            Map(
                                required={
                                    "action": Is(("FailJobSet", "RestartJobSet")),
                                    "onJobFailureReasons": List(Is(("PodFailurePolicy",))),
                                }
                            )
                        ),
                    }
                ),
                "replicatedJobs": List(
                    Map(
                        required={
                            "name": str,
                            "replicas": int,
                            "template": Map(required={"spec": _JOB}),
                        }
                    )
                ),
            }
        ),
    }
)


def check(config: spec.Launch, document: dict[str, Any]) -> None:
    """Checks a JobSet by its schema, then against the spec.

    Raises:
      LaunchError: names every place that is wrong.
    """
    wrong = _mismatches(document, SCHEMA, "")
    wrong = wrong or list(_broken_rules(config, document["spec"]))
    if wrong:
        raise spec.LaunchError("The JobSet is wrong:\n  " + "\n  ".join(wrong))


def _mismatches(value: Any, schema: Any, where: str) -> list[str]:
    if isinstance(schema, Is):
        right = any(type(value) is type(one) and value == one for one in schema.values)
        return [] if right else [f"{where}: {value!r} is none of {list(schema.values)}"]
    if isinstance(schema, type):
        right = type(value) is schema
        return [] if right else [f"{where}: {value!r} is not of the type {schema.__name__}"]
    if isinstance(schema, List):
        if not isinstance(value, list) or not value:
            return [f"{where}: {value!r} is not a list with items"]
        return [
            wrong
            for i, one in enumerate(value)
            for wrong in _mismatches(one, schema.item, f"{where}[{i}]")
        ]
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is not a mapping"]
    known = {**schema.required, **schema.optional}
    wrong = [f"{where}.{key} is missing" for key in schema.required if key not in value]
    for key, inner in value.items():
        if schema.any_key is None and key not in known:
            wrong.append(f"{where}.{key} is not known; there are: {', '.join(known)}")
        else:
            wrong += _mismatches(inner, known.get(key, schema.any_key), f"{where}.{key}")
    return wrong


def _broken_rules(config: spec.Launch, jobset_spec: dict[str, Any]) -> Any:
    """What is well formed and yet wrong for this slice and this run."""
    job = jobset_spec["replicatedJobs"][0]
    inner = job["template"]["spec"]
    pod = inner["template"]["spec"]
    selector, container = pod["nodeSelector"], pod["containers"][0]
    topology = selector.get("cloud.google.com/gke-tpu-topology", "")
    chips = container["resources"]["limits"]["google.com/tpu"]
    try:
        torus = slices.parse(f"{config.tpu.chip.name}:{topology}").torus
    except slices.NoSuchSliceError as error:
        yield str(error)
        return
    if math.prod(torus) != config.tpu.chips_per_slice:
        yield f"topology {topology} has not the {config.tpu.chips_per_slice} chips of the slice"
    if inner["parallelism"] != inner["completions"]:
        yield f"parallelism {inner['parallelism']} is not completions {inner['completions']}"
    if inner["parallelism"] * chips != config.tpu.chips_per_slice:
        yield (
            f"{inner['parallelism']} pods of {chips} chips are not the "
            f"{config.tpu.chips_per_slice} chips of a slice"
        )
    if container["resources"]["requests"] != container["resources"]["limits"]:
        yield "requested chips are not the limit"
    if job["replicas"] != config.tpu.slices:
        yield f"{job['replicas']} replicas are not {config.tpu.slices} slices"
    if pod["terminationGracePeriodSeconds"] < config.save_seconds:
        yield (
            f"terminationGracePeriodSeconds {pod['terminationGracePeriodSeconds']} is less than "
            f"Launch.save_seconds {config.save_seconds}"
        )
    rule = inner["podFailurePolicy"]["rules"][0]["onExitCodes"]
    if rule["operator"] != "NotIn" or set(rule["values"]) != set(exits.RESTART):
        yield "exit codes that restart are not those of midjax/launch/exits.py"
    if rule["containerName"] != container["name"]:
        yield f"the rule is of {rule['containerName']}, the container {container['name']}"
    mounted = {one["name"] for one in container["volumeMounts"]}
    if missing := mounted - {one["name"] for one in pod["volumes"]}:
        yield f"mounted and not there: {sorted(missing)}"
