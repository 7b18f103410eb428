# SPDX-License-Identifier: Apache-2.0
import fake_cloud
import pytest

from midjax.launch import gcloud, runner, spec, watch


def look(state="ACTIVE", code=None, *, ended=True, age=0.0, attempt=1, **more) -> watch.Look:
    report = None
    if code is not None or not ended:
        report = watch.Report(ended=ended, code=code, seen_seconds=1000.0 - age)
    fields = {"stop_asked": False, "silent_seconds": 0.0, "now_seconds": 1000.0, **more}
    resource = gcloud.Resource(state=state, attempt=attempt, first=1)
    return watch.Look(resource=resource, report=report, **fields)


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (look("WAITING_FOR_RESOURCES"), "wait"),
        (look("PROVISIONING"), "wait"),
        (look("ACTIVE"), "start"),
        (look("ACTIVE", ended=False), "wait"),
        (look("ACTIVE", ended=False, age=899), "wait"),
        (look("ACTIVE", ended=False, age=900), "restart"),  # a machine that died without a word
        (look("ACTIVE", silent_seconds=900), "restart"),  # and one that never said any
        (look("SUSPENDING", ended=False), "wait"),
        (look("SUSPENDED", ended=False), "restart"),
        (look("FAILED"), "restart"),
        (look("ACTIVE", 0), "done"),
        (look("SUSPENDED", 0), "done"),  # it ended before the slice went
        *((look("ACTIVE", code), "stop") for code in (1, 2, 3, 4, 5, 41, 126)),
        (look("SUSPENDED", 3), "stop"),
        *((look("ACTIVE", code), "restart") for code in (42, 127, 134, 137, 143, 170, 171, 255)),
        (look("SUSPENDED", 42, stop_asked=True), "stop"),
        (look("SUSPENDED", stop_asked=True), "stop"),
        (look("ACTIVE", 42, attempt=20), "restart"),
        (look("ACTIVE", 42, attempt=21), "stop"),  # 20 restarts were allowed, and made
        (look("ACTIVE", 0, attempt=21), "done"),
    ],
)
def test_decisions(found, kind):
    assert watch.decide(fake_cloud.launch(), found).kind == kind


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (look("ACTIVE"), "wait"),  # its startup script starts it
        (look("ACTIVE", 42, age=60), "wait"),  # and starts it again after a reboot
        (look("ACTIVE", 42, age=901), "restart"),
        (look("ACTIVE", 42, age=60, stop_asked=True), "stop"),
        (look("SUSPENDED", 42, age=60), "restart"),
        (look("ACTIVE", 4, age=60), "stop"),
    ],
)
def test_a_machine_with_a_startup_script_may_come_back(found, kind):
    assert watch.decide(fake_cloud.launch(backend="qr"), found).kind == kind


def test_reasons_are_told():
    why = watch.decide(fake_cloud.launch(), look("ACTIVE", 4)).why
    assert why == "the run ended with code 4 (the numbers gave up: diverged)"
    why = watch.decide(fake_cloud.launch(max_restarts=0), look("SUSPENDED")).why
    assert "Launch.max_restarts" in why


def test_nothing_there():
    nothing = watch.Look(
        resource=None, report=None, stop_asked=False, silent_seconds=0, now_seconds=0
    )
    assert watch.decide(fake_cloud.launch(), nothing).kind == "stop"


def test_an_answer_that_does_not_come_is_waited_for():
    cloud = fake_cloud.Cloud([lambda c: c.report(1, "ended", 0)])
    cloud.run(gcloud.create(fake_cloud.launch(), 1, 1, None).argv)
    cloud.set("ACTIVE")
    cloud.answers = [("describe", runner.Done(code=1, err="connection reset"))]
    loop = watch.Watch(
        fake_cloud.launch(), cloud, lambda *_: None, clock=cloud.clock, sleep=cloud.sleep
    )
    loop.run()
    assert cloud.resource is None  # done, and given back


def test_reports_that_are_torn_count_as_none():
    cloud = fake_cloud.Cloud()
    for text in ('{"state": "end', "[]", '{"state": "ended", "code": "x", "seen": 1}'):
        cloud.reports[1] = text
        assert watch.read_report(fake_cloud.launch(), cloud, 1) is None


def jobset(*conditions, restarts=0):
    def happens(cloud):
        listed = [{"type": one, "status": "True"} for one in conditions]
        cloud.jobset = {
            "metadata": {"labels": {"attempt": "1"}},
            "status": {"conditions": listed, "restarts": restarts},
        }

    return happens


def test_a_jobset_is_waited_for():
    history = [jobset(), jobset("StartupPolicyCompleted", restarts=1), jobset("Completed")]
    cloud = fake_cloud.Cloud(history)
    cloud.answers = [("kubectl get", runner.Done(code=1, err="connection reset"))]
    watch.watch_jobset(fake_cloud.on_gke(), cloud, cloud.sleep)
    assert not cloud.history


def test_a_jobset_that_failed_is_told_with_its_code():
    cloud = fake_cloud.Cloud()
    jobset("Failed", restarts=2)(cloud)
    cloud.report(3, "ended", 4)
    with pytest.raises(watch.RunEndedError, match="is Failed: the run ended with code 4") as ended:
        watch.watch_jobset(fake_cloud.on_gke(), cloud, cloud.sleep)
    assert ended.value.exit_code == 4
    jobset("Suspended")(cloud)
    with pytest.raises(watch.RunEndedError, match="is Suspended$"):
        watch.watch_jobset(fake_cloud.on_gke(), cloud, cloud.sleep)


@pytest.mark.parametrize("refused", [2, watch.MOST_REFUSALS])
def test_a_restart_that_is_refused_is_tried_again_and_not_for_ever(refused):
    config, asked = fake_cloud.launch(backend="qr"), []
    cloud = fake_cloud.Cloud([lambda c: None] * (refused + 1))
    cloud.run(gcloud.create(config, 1, 1, None).argv)
    cloud.set("SUSPENDED")

    def submit(attempt, first):
        asked.append((attempt, first))
        if len(asked) <= refused:
            raise spec.LaunchError("no quota")
        cloud.run(gcloud.create(config, attempt, first, None).argv)
        cloud.report(2, "ended", 0)

    loop = watch.Watch(config, cloud, submit, clock=cloud.clock, sleep=cloud.sleep)
    if refused == watch.MOST_REFUSALS:
        with pytest.raises(spec.LaunchError, match="no quota"):
            loop.run()
        assert len(asked) == refused
    else:
        loop.run()
        assert asked == [(2, 1)] * 3
    assert len(cloud.lines(" delete ")) == (1 if refused == watch.MOST_REFUSALS else 2)
