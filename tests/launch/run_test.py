# SPDX-License-Identifier: Apache-2.0
import dataclasses
import pathlib

import fake_cloud
import pytest
import yaml

from midjax.launch import run, runner, spec, watch

WHERE = "--zone=us-west4-a --project=my-project"
QUEUED = "gcloud compute tpus queued-resources"


def session(tmp_path, cloud, config=None, reads=(), **changes) -> run.Session:
    config = dataclasses.replace(
        config or fake_cloud.launch(), folder=str(tmp_path / "launch"), **changes
    )
    return run.Session(
        config,
        cloud,
        reads=reads,
        clock=cloud.clock,
        sleep=cloud.sleep,
        say=cloud.said.append,
    )


def create_line(attempt: int) -> str:
    return (
        f"{QUEUED} create anneal --node-id=anneal {WHERE} --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite "
        f"--labels=run=anneal,attempt={attempt},first=1 "
        "--scopes=https://www.googleapis.com/auth/cloud-platform --spot --async"
    )


def start_line(attempt: int) -> str:
    return (
        f"{QUEUED} ssh anneal {WHERE} --node=all --worker=all "
        "--command=set -o pipefail; gcloud storage cat "
        f"gs://my-bucket/runs/anneal/launch/{attempt}/start.sh | sudo bash --quiet"
    )


DESCRIBE = f"{QUEUED} describe anneal {WHERE} --format=json"
DELETE = f"{QUEUED} delete anneal {WHERE} --force --quiet"


def submission(folder, attempt: int) -> list[str]:
    files = f"{folder}/worker.sh {folder}/start.sh {folder}/code.tgz"
    return [
        f"git -C . archive --format=tar.gz --output={folder}/code.tgz HEAD",
        f"gcloud storage cp {files} gs://my-bucket/runs/anneal/launch/{attempt}/ --quiet",
        create_line(attempt),
    ]


def test_the_exact_calls_of_create_preempt_resubmit_and_the_end(tmp_path):
    folder = tmp_path / "launch/anneal"
    cloud = fake_cloud.Cloud([lambda c: c.set("PROVISIONING"), lambda c: c.set("ACTIVE")])
    one = session(tmp_path, cloud)
    one.create()
    assert cloud.lines() == [
        "gcloud storage buckets describe gs://my-bucket --format=value(location)",
        DESCRIBE,
        "git -C . ls-files --error-unmatch -- gin/recipes/demo_midtrain.gin",
        "git -C . status --porcelain",
        "gcloud storage ls gs://my-bucket/runs/anneal/launch/",
        *submission(folder, 1),
        *(DESCRIBE, DESCRIBE, DESCRIBE),
        start_line(1),
    ]
    cloud.calls.clear()

    def preempted(c):
        c.report(1, "ended", 42)
        c.set("SUSPENDED")

    def finished(c):
        c.report(2, "ended", 0)

    cloud.history = [
        lambda c: c.report(1, "running"),
        preempted,
        lambda c: c.set("WAITING_FOR_RESOURCES"),
        lambda c: c.set("ACTIVE"),
        lambda c: c.report(2, "running"),
        finished,
    ]
    one.watch()
    report, stop = (
        "gcloud storage cat gs://my-bucket/runs/anneal/exit/{}.json",
        ("gcloud storage cat gs://my-bucket/runs/anneal/launch/{}/stop.json"),
    )
    looks = {n: [DESCRIBE, report.format(n), stop.format(n)] for n in (1, 2)}
    assert cloud.lines() == [
        *looks[1],
        start_line(1),  # no word yet: starting twice starts once
        *looks[1],
        *looks[1],
        DELETE,
        *submission(folder, 2),
        *looks[2],
        *looks[2],
        start_line(2),
        *looks[2],
        *looks[2],
        DELETE,
    ]
    assert cloud.resource is None
    assert cloud.said[-1] == "anneal: the target is reached"
    assert "attempt=$((2 + " in (folder / "worker.sh").read_text()


def test_restarts_have_a_limit(tmp_path):
    def goes(c):
        c.set("SUSPENDED")

    cloud = fake_cloud.Cloud([goes, goes, goes])
    one = session(tmp_path, cloud, backend="qr", max_restarts=2)
    one.create()
    with pytest.raises(watch.RunEndedError, match="restart 2 of as many"):
        one.watch()
    assert len(cloud.lines(" create ")) == 3
    assert cloud.resource is None  # given back


def test_a_machine_that_fell_silent_is_given_back_where_no_restart_is_left(tmp_path):
    def falls_silent(c):
        c.set("ACTIVE")
        c.report(1, "running", None)
        c.now += fake_cloud.launch().silent_seconds

    cloud = fake_cloud.Cloud([falls_silent])
    one = session(tmp_path, cloud, backend="qr", max_restarts=0)
    one.create()
    with pytest.raises(watch.RunEndedError, match="not heard of"):
        one.watch()
    assert cloud.resource is None and len(cloud.lines(" create ")) == 1


@pytest.mark.parametrize(
    ("code", "own"), [(1, 1), (2, 2), (3, 2), (4, 4), (5, 5), (6, 6), (100, 2)]
)
def test_what_a_restart_cannot_mend_stops_and_says_why(tmp_path, code, own):
    cloud = fake_cloud.Cloud([lambda c: c.set("ACTIVE"), lambda c: c.report(1, "ended", code)])
    one = session(tmp_path, cloud, backend="qr")
    one.create()
    with pytest.raises(watch.RunEndedError, match=f"ended with code {code} ") as ended:
        one.watch()
    assert ended.value.exit_code == own
    assert cloud.resource is None  # given back
    assert len(cloud.lines(" create ")) == 1


def test_a_run_that_was_stopped_is_not_started_again(tmp_path):
    cloud = fake_cloud.Cloud([lambda c: c.set("ACTIVE"), lambda c: c.report(1, "ended", 42)])
    one = session(tmp_path, cloud)
    one.create()
    one.stop()
    assert cloud.lines("systemctl") == [
        f"{QUEUED} ssh anneal {WHERE} --node=all --worker=all "
        "--command=sudo systemctl stop midjax-anneal --quiet"
    ]
    with pytest.raises(watch.RunEndedError, match="stopped as asked"):
        one.watch()
    assert cloud.resource is not None and len(cloud.lines(" create ")) == 1
    one.delete()
    assert cloud.resource is None
    cloud.history = [lambda c: c.set("ACTIVE")]
    one.create()  # goes on as another attempt
    assert "attempt=2,first=2" in cloud.lines(" create ")[-1]


def test_create_is_refused_before_anything_is_asked_for(tmp_path):
    cloud = fake_cloud.Cloud()
    cloud.location = "EU"
    with pytest.raises(spec.LaunchError, match="is in EU"):
        session(tmp_path, cloud).create()
    cloud.location = "US"
    cloud.answers = [("ls-files", runner.Done(code=1, err="did not match any file(s)"))]
    with pytest.raises(spec.LaunchError, match="did not match"):
        session(tmp_path, cloud).create()
    with pytest.raises(spec.LaunchError, match="gs://b-2 is in EU, and the slice in us-west4"):
        cloud.answers = [("describe gs://b-2", runner.Done(code=0, out="EU\n"))]
        session(tmp_path, cloud, reads=["gs://b-2/tokens"]).create()
    cloud.objects.add("gs://b-2/tokens/index.json")
    for place, said in (("gs://b-2/run", "does not exist"), ("gs://b-2/tokens", "did not match")):
        cloud.answers = [("ls-files", runner.Done(code=1, err="did not match any file(s)"))]
        with pytest.raises(spec.LaunchError, match=said):
            session(tmp_path, cloud, reads=[place]).create()
    cloud.answers = [("ls gs://b-2/tokens", runner.Done(code=1, err="HTTPError 403: no access"))]
    with pytest.raises(spec.LaunchError, match="403"):
        session(tmp_path, cloud, reads=["gs://b-2/tokens"]).create()
    cloud.answers = []
    assert not cloud.lines(" create ", " cp ")
    cloud.history = [lambda c: c.set("ACTIVE")]
    cloud.answers = [("porcelain", runner.Done(code=0, out=" M midjax/log.py\n"))]
    session(tmp_path, cloud).create()
    assert any("not in the commit" in text and "midjax/log.py" in text for text in cloud.said)
    with pytest.raises(spec.LaunchError, match="already"):
        session(tmp_path, cloud).create()


def test_no_machines(tmp_path):
    cloud = fake_cloud.Cloud([lambda c: c.set("FAILED")])
    with pytest.raises(spec.LaunchError, match="is FAILED: no machines"):
        session(tmp_path, cloud).create()


def test_status_and_logs(tmp_path):
    cloud = fake_cloud.Cloud([lambda c: c.set("ACTIVE")])
    one = session(tmp_path, cloud)
    one.status()
    assert cloud.said[-2:] == [
        "queued resource anneal: there is none",
        "worker 0 has not said anything",
    ]
    with pytest.raises(spec.LaunchError, match="holds no run"):
        one.logs()
    one.create()
    cloud.report(1, "running")
    cloud.now += 90
    one.status()
    assert cloud.said[-3:] == [
        "queued resource anneal: ACTIVE, attempt 1",
        "running; worker 0 was heard of 1m30s ago",
        "log: gs://my-bucket/runs/anneal/logs/1/0-0.log",
    ]
    one.logs("1-3")
    assert cloud.said[-1] == "the log gs://my-bucket/runs/anneal/logs/1/1-3.log"
    cloud.answers = [("describe", runner.Done(code=1, err="connection reset"))]
    with pytest.raises(spec.LaunchError, match="connection reset"):
        one.status()


def test_gke(tmp_path):
    cloud = fake_cloud.Cloud()
    one = session(tmp_path, cloud, fake_cloud.on_gke())
    one.create()
    folder = tmp_path / "launch/anneal"
    credentials = (
        "gcloud container clusters get-credentials tpus --location=us-west4 --project=my-project"
    )
    assert cloud.lines()[-3:] == [
        f"gcloud storage cp {folder}/jobset.yaml {folder}/worker.sh "
        "gs://my-bucket/runs/anneal/launch/1/ --quiet",
        credentials,
        f"kubectl apply --filename={folder}/jobset.yaml",
    ]
    kinds = [d["kind"] for d in yaml.safe_load_all((folder / "jobset.yaml").read_text())]
    assert kinds == ["ConfigMap", "JobSet"]
    cloud.calls.clear()
    one.status()
    assert cloud.said[-3] == "JobSet anneal: there is none"
    cloud.answers = [("kubectl get", runner.Done(code=1, err="connection reset"))]
    with pytest.raises(spec.LaunchError, match="connection reset"):  # it may be there
        one.create()
    cloud.calls.clear()
    cloud.jobset = list(yaml.safe_load_all((folder / "jobset.yaml").read_text()))[1]
    cloud.jobset["status"] = {
        "conditions": [{"type": "Completed", "status": "True"}],
        "restarts": 1,
    }
    one.watch()
    one.status()
    assert cloud.said[-2] == "worker 0 has not said anything"
    assert cloud.said[-1] == "log: gs://my-bucket/runs/anneal/logs/2/0-0.log"
    one.logs()
    assert cloud.said[-1] == "the log gs://my-bucket/runs/anneal/logs/2/0-0.log"
    with pytest.raises(spec.LaunchError, match="There is a JobSet anneal already"):
        one.create()
    one.stop()
    one.delete()
    assert "gs://my-bucket/runs/anneal/launch/1/stop.json" in cloud.objects
    assert cloud.lines("kubectl") == [
        *["kubectl get jobset anneal --output=json"] * 4,
        'kubectl patch jobset anneal --type=merge --patch={"spec": {"suspend": true}}',
        "kubectl delete jobset/anneal configmap/anneal-worker --ignore-not-found",
    ]


@pytest.mark.parametrize("backend", ["vm", "qr", "gke"])
@pytest.mark.parametrize("action", run.ACTIONS)
def test_printing_runs_nothing(tmp_path, backend, action):
    cloud = fake_cloud.Cloud(present="")
    config = fake_cloud.on_gke() if backend == "gke" else fake_cloud.launch(backend=backend)
    text = session(tmp_path, cloud, config).print_commands(action)
    assert not cloud.calls
    for line in text.splitlines():
        assert not line or line.startswith(("# ", "gcloud ", "kubectl ", "git ", "xpk ")), line
    if action == "create":
        assert ("startup-script=" in text) == (backend == "qr")
        assert ("xpk workload create" in text) == (backend == "gke")
    assert ("queued-resources" in text) <= (backend != "gke")


@pytest.mark.parametrize("backend", ["vm", "qr", "gke"])
def test_no_secret_is_printed_or_written(tmp_path, backend, monkeypatch):
    canary = "canary-5d41402abc4b"
    monkeypatch.setenv("WANDB_API_KEY", canary)
    secrets = {"WANDB_API_KEY": "wandb-key"}
    config = (fake_cloud.on_gke if backend == "gke" else fake_cloud.launch)(
        secrets=secrets, backend=backend
    )
    cloud = fake_cloud.Cloud([lambda c: c.set("ACTIVE")])
    one = session(tmp_path, cloud, config)
    seen = "".join(one.print_commands(action) for action in run.ACTIONS)
    one.create()
    seen += "".join(cloud.said) + "".join(cloud.lines()) + repr(config)
    written = [place for place in (tmp_path / "launch").rglob("*") if place.is_file()]
    assert len(written) >= 3
    seen += "".join(pathlib.Path(place).read_text() for place in written)
    assert canary not in seen and "wandb-key" in seen


def test_watch_can_be_interrupted_and_the_run_goes_on(tmp_path):
    def interrupted(c):
        raise KeyboardInterrupt

    cloud = fake_cloud.Cloud([lambda c: c.set("ACTIVE"), interrupted])
    one = session(tmp_path, cloud, backend="qr")
    one.create()
    cloud.sleep(0)
    one.watch()
    assert "nobody watches it" in cloud.said[-1] and not cloud.lines(" delete ")


def test_an_attempt_of_gke_is_none_that_jobset_has_made(tmp_path):
    """A JobSet that was launched as attempt 1 and restarted twice has reported as 2 and 3."""
    cloud = fake_cloud.Cloud()
    one = session(tmp_path, cloud, fake_cloud.on_gke())
    one.create()
    place = "gs://my-bucket/runs/anneal"
    cloud.objects |= {f"{place}/exit/2.json", f"{place}/exit/2-1-3.json", f"{place}/exit/notes.txt"}
    cloud.objects |= {f"{place}/logs/3/0-1.log"}
    one.delete()
    one.create()
    labels = yaml.safe_load((tmp_path / "launch/anneal/jobset.yaml").read_text().split("---")[1])
    assert labels["metadata"]["labels"]["attempt"] == "4"
    assert "attempt=$((4 + " in (tmp_path / "launch/anneal/worker.sh").read_text()
    one.stop()
    assert f"{place}/launch/4/stop.json" in cloud.objects


def test_a_stopped_jobset_of_a_queue_is_not_waited_for(tmp_path):
    cloud = fake_cloud.Cloud()
    one = session(tmp_path, cloud, fake_cloud.on_gke(queue="tpus"))
    one.create()
    manifest = (tmp_path / "launch/anneal/jobset.yaml").read_text()
    cloud.jobset = list(yaml.safe_load_all(manifest))[1]
    cloud.jobset["status"] = {
        "conditions": [{"type": "Suspended", "status": "True"}],
        "restarts": 1,
    }
    one.stop()
    with pytest.raises(watch.RunEndedError, match="stopped as asked"):
        one.watch()
