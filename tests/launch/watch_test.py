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
        *((look("ACTIVE", code), "stop") for code in (1, 2, 3, 4, 5, 6, 41, 126)),
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


OFFLINE = runner.Done(
    code=1, err="<urllib3.connection.HTTPSConnection object at 0x7f4044043a90>: unreachable"
)


def watched(cloud, config=None, submit=lambda *_: None) -> watch.Watch:
    """A loop over a cloud that has an ACTIVE slice of attempt 1."""
    config = config or fake_cloud.launch()
    cloud.run(gcloud.create(config, 1, 1, None).argv)
    cloud.set("ACTIVE")
    return watch.Watch(config, cloud, submit, clock=cloud.clock, sleep=cloud.sleep)


@pytest.mark.parametrize("unread", ["/exit/1.json", "/stop.json"])
def test_a_report_that_cannot_be_read_starts_nothing(unread):
    """An ended trainer would be started once more, and a stopped one."""
    cloud = fake_cloud.Cloud([lambda c: None])
    loop = watched(cloud)
    cloud.report(1, "ended", 3)
    cloud.answers = [(unread, OFFLINE)]
    with pytest.raises(watch.RunEndedError, match="code 3"):
        loop.run()
    assert not cloud.lines(" ssh ") and not cloud.history


@pytest.mark.parametrize("code", [0, 4])
@pytest.mark.parametrize("heard", [False, True])
def test_the_end_is_not_before_the_slice_is_given_back(code, heard):
    """A delete that fails is tried again, unless it was heard all the same."""

    def later(c):
        if heard:
            c.resource = None

    cloud = fake_cloud.Cloud([later])
    loop = watched(cloud)
    cloud.report(1, "ended", code)
    cloud.answers = [(" delete ", OFFLINE)]
    if code:
        with pytest.raises(watch.RunEndedError, match="code 4"):
            loop.run()
    else:
        loop.run()
    assert cloud.resource is None and not cloud.history
    assert len(cloud.lines(" delete ")) == (1 if heard else 2)


def test_a_restart_whose_delete_was_heard_all_the_same():
    asked = []

    def submit(attempt, first):
        asked.append((attempt, first))
        cloud.run(gcloud.create(fake_cloud.launch(), attempt, first, None).argv)
        cloud.report(attempt, "ended", 0)

    def gone(c):
        c.resource = None

    cloud = fake_cloud.Cloud([gone, lambda c: None])
    loop = watched(cloud, submit=submit)
    cloud.report(1, "ended", 134)
    cloud.answers = [(" delete ", OFFLINE)]
    loop.run()
    assert asked == [(2, 1)]


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


def test_a_jobset_in_a_queue_is_waited_for_while_it_is_suspended():
    """Kueue suspends what it has not admitted yet, and what it preempts."""
    history = [jobset("Suspended"), jobset(), jobset("Suspended", restarts=1), jobset("Completed")]
    cloud = fake_cloud.Cloud(history)
    jobset("Suspended")(cloud)
    cloud.answers = [("/stop.json", OFFLINE)]
    watch.watch_jobset(fake_cloud.on_gke(queue="tpus"), cloud, cloud.sleep)
    assert not cloud.history


@pytest.mark.parametrize("queue", [None, "tpus"])
def test_a_jobset_that_was_stopped_or_is_gone_is_not_waited_for(queue):
    config, cloud = fake_cloud.on_gke(queue=queue), fake_cloud.Cloud()
    with pytest.raises(watch.RunEndedError, match="there is no such JobSet"):
        watch.watch_jobset(config, cloud, cloud.sleep)
    jobset("Suspended", restarts=2)(cloud)
    cloud.objects.add(watch.stop_place(config, 1))
    with pytest.raises(watch.RunEndedError, match="stopped as asked"):
        watch.watch_jobset(config, cloud, cloud.sleep)


def test_a_failed_jobsets_code_is_read_even_if_not_at_once():
    cloud = fake_cloud.Cloud([lambda c: None])
    jobset("Failed")(cloud)
    cloud.report(1, "ended", 4)
    cloud.answers = [("/exit/1.json", OFFLINE)]
    with pytest.raises(watch.RunEndedError, match="code 4"):
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
