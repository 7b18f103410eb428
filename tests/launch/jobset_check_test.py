# SPDX-License-Identifier: Apache-2.0
import copy
from typing import Any

import fake_cloud
import pytest

from midjax.launch import jobset, jobset_check, spec

JOB = ("spec", "replicatedJobs", 0, "template", "spec")
POD = (*JOB, "template", "spec")
CONTAINER = (*POD, "containers", 0)
GONE = object()


def damaged(path: tuple, value: Any) -> dict:
    document = copy.deepcopy(jobset.documents(fake_cloud.on_gke())[1])
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("apiVersion",), "jobset.x-k8s.io/v1", "apiVersion"),
        (("metadata", "name"), GONE, "metadata.name is missing"),
        (("spec", "failurePolicy", "maxRestart"), 3, "maxRestart is not known"),
        ((*JOB, "paralelism"), 4, "paralelism is not known"),
        ((*JOB, "backoffLimit"), 3, "backoffLimit"),
        ((*JOB, "completionMode"), GONE, "completionMode is missing"),
        ((*POD, "restartPolicy"), "OnFailure", "restartPolicy"),
        ((*POD, "terminationGracePeriodSeconds"), "120s", "not of the type int"),
        ((*POD, "hostNetwork"), "true", "hostNetwork"),
        ((*CONTAINER, "env"), [{"name": "A", "values": "b"}], "values is not known"),
        ((*CONTAINER, "command"), "bash", "not a list"),
        ((*CONTAINER, "resources", "limits"), {"google.com/tpus": 4}, "google.com/tpus"),
        ((*POD, "volumes"), [], "not a list with items"),
    ],
)
def test_the_schema_sees_what_kubernetes_might_not(path, value, said):
    with pytest.raises(spec.LaunchError) as refused:
        jobset_check.check(fake_cloud.on_gke(), damaged(path, value))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ((*JOB, "parallelism"), 8, "parallelism 8 is not completions 4"),
        ((*CONTAINER, "resources", "limits"), {"google.com/tpu": 8}, "are not the 16 chips"),
        ((*CONTAINER, "resources", "requests"), {"google.com/tpu": 1}, "not the limit"),
        ((*POD, "nodeSelector", "cloud.google.com/gke-tpu-topology"), "4x8", "not the 16 chips"),
        ((*POD, "nodeSelector", "cloud.google.com/gke-tpu-topology"), "2x8", "no torus 2x8"),
        (("spec", "replicatedJobs", 0, "replicas"), 2, "2 replicas are not 1 slices"),
        ((*POD, "terminationGracePeriodSeconds"), 30, "less than Launch.save_seconds 60"),
        (
            (*JOB, "podFailurePolicy", "rules", 0, "onExitCodes", "values"),
            [42],
            "exit codes that restart",
        ),
        ((*CONTAINER, "name"), "main", "the container main"),
        ((*CONTAINER, "volumeMounts", 0, "name"), "scratch", "mounted and not there"),
    ],
)
def test_rules_that_no_schema_says(path, value, said):
    with pytest.raises(spec.LaunchError) as refused:
        jobset_check.check(fake_cloud.on_gke(), damaged(path, value))
    assert said in str(refused.value)


def test_what_is_written_is_right():
    config = fake_cloud.on_gke()
    jobset_check.check(config, jobset.documents(config)[1])
