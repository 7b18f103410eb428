# SPDX-License-Identifier: Apache-2.0
import fake_cloud
import pytest

from midjax.launch import gcloud, runner, watch


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


def jobset(*conditions):
    def happens(cloud):
        listed = [{"type": one, "status": "True"} for one in conditions]
        cloud.jobset = {"status": {"conditions": listed}}

    return happens


def test_a_jobset_is_waited_for():
    cloud = fake_cloud.Cloud([jobset("StartupPolicyCompleted"), jobset("Completed")])
    watch.watch_jobset(fake_cloud.on_gke(), cloud, cloud.sleep)
    cloud = fake_cloud.Cloud([jobset("Failed")])
    with pytest.raises(watch.RunEndedError, match="is Failed"):
        watch.watch_jobset(fake_cloud.on_gke(), cloud, cloud.sleep)
