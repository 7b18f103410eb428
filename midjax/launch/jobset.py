# SPDX-License-Identifier: Apache-2.0
"""The JobSet of a run on GKE, with its worker script as a ConfigMap."""

from typing import Any

from midjax.launch import environment, exits, spec, worker

# chip -> what GKE calls its slices: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
API_VERSION = "jobset.x-k8s.io/v1alpha2"
_MOUNT = "/etc/midjax"
_WORK = "/var/midjax"
# JobSet writes on each pod how often it has restarted; the worker script counts attempts by it.
_RESTARTS = "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"


def script_name(config: spec.Launch) -> str:
    """Name of the ConfigMap."""
    return f"{config.name}-worker"


def documents(config: spec.Launch, attempt: int = 1) -> list[dict[str, Any]]:
    """ConfigMap and JobSet, which restarts all slices by itself; attempt is its first one."""
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": script_name(config), "labels": config.all_labels},
        "data": {"worker.sh": worker.script(config, attempt)},
    }
    return [config_map, _jobset(config, attempt)]


def _jobset(config: spec.Launch, attempt: int) -> dict[str, Any]:
    labels = {**config.all_labels, "attempt": str(attempt)}
    if config.queue:
        labels["kueue.x-k8s.io/queue-name"] = config.queue
    return {
        "apiVersion": API_VERSION,
        "kind": "JobSet",
        "metadata": {
            "name": config.name,
            "labels": labels,
            # Each slice has a node pool of its own.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": config.max_restarts,
                "rules": [
                    {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": config.tpu.slices,
                    "template": {"spec": _job(config)},
                }
            ],
        },
    }


def _job(config: spec.Launch) -> dict[str, Any]:
    return {
        "parallelism": config.tpu.hosts_per_slice,
        "completions": config.tpu.hosts_per_slice,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        # Whatever a restart cannot mend fails the JobSet for good. Codes: midjax/launch/exits.py.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": worker.CONTAINER,
                        "operator": "NotIn",
                        "values": list(exits.RESTART),
                    },
                }
            ]
        },
        "template": {"metadata": {"labels": config.all_labels}, "spec": _pod(config)},
    }


def _pod(config: spec.Launch) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[config.tpu.chip.name],
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, _sorted(config.tpu.torus))),
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists"}]
    if config.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Exists"})
    account = {"serviceAccountName": config.service_account} if config.service_account else {}
    return {
        "restartPolicy": "Never",
        **account,
        "terminationGracePeriodSeconds": config.grace_seconds,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [_container(config)],
        "volumes": [
            {"name": "worker", "configMap": {"name": script_name(config)}},
            {"name": "work", "emptyDir": {}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _container(config: spec.Launch) -> dict[str, Any]:
    variables: list[dict[str, Any]] = [
        {"name": "MIDJAX_WORK", "value": _WORK},
        {"name": "MIDJAX_RESTART", "valueFrom": {"fieldRef": {"fieldPath": _RESTARTS}}},
    ]
    variables += [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}}
        for name, secret in config.secrets.items()
    ]
    chips = config.tpu.chips_per_host
    return {
        "name": worker.CONTAINER,
        "image": config.image,
        # bash itself is what GKE signals: the script passes it on to the trainer.
        "command": ["bash", f"{_MOUNT}/worker.sh"],
        "env": variables,
        "securityContext": {"privileged": True},
        "resources": {
            "requests": {"google.com/tpu": chips},
            "limits": {"google.com/tpu": chips},
        },
        "volumeMounts": [
            {"name": "worker", "mountPath": _MOUNT},
            {"name": "work", "mountPath": _WORK},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def _sorted(torus: tuple[int, ...]) -> tuple[int, ...]:
    """GKE's labels have edges rising, but for 2x2x1."""
    edges = tuple(sorted(torus))
    return (2, 2, 1) if edges == (1, 2, 2) else edges


def env_file(config: spec.Launch) -> str:
    """`NAME=value` lines for xpk's --env-file; secrets are not among them."""
    return "".join(f"{one.name}={one.value}\n" for one in environment.fixed(config))
