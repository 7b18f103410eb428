# SPDX-License-Identifier: Apache-2.0
import fake_cloud
import pytest

from midjax.launch import region, runner, spec


@pytest.mark.parametrize(
    ("location", "where", "holds"),
    [
        ("US-WEST4", "us-west4", True),
        ("us-west4\n", "us-west4", True),
        ("US-WEST1", "us-west4", False),
        ("US", "us-west4", True),
        ("EU", "us-west4", False),
        ("EU", "europe-west4", True),
        ("ASIA", "asia-northeast1", True),
        ("NAM4", "us-central1", True),
        ("NAM4", "us-west4", False),
        ("EUR4", "europe-west4", True),
        ("EUROPE-WEST4", "us-central1", False),
    ],
)
def test_locations(location, where, holds):
    assert region.holds(location, where) is holds


def test_a_bucket_elsewhere_is_refused_unless_the_recipe_says_why():
    cloud = fake_cloud.Cloud()
    cloud.location = "EUROPE-WEST4"
    with pytest.raises(spec.LaunchError) as refused:
        region.check(fake_cloud.launch(), cloud)
    assert "in EUROPE-WEST4, and the slice in us-west4 (us-west4-a)" in str(refused.value)
    allowed = fake_cloud.launch(allow_cross_region="the corpus is small")
    assert region.check(allowed, cloud)[0].endswith("allowed, as the corpus is small")
    assert cloud.calls[0] == [
        *("gcloud", "storage", "buckets", "describe", "gs://my-bucket", "--format=value(location)")
    ]


def test_what_is_not_known_is_said():
    (text,) = region.check(fake_cloud.launch(), fake_cloud.Cloud())
    assert "has us-west4" in text
    absent = fake_cloud.Cloud(present="")
    (text,) = region.check(fake_cloud.launch(), absent)
    assert "not checked" in text and not absent.calls
    broken = fake_cloud.Cloud()
    broken.answers = [("buckets describe", runner.Done(code=1, err="no permission"))]
    with pytest.raises(spec.LaunchError, match="no permission"):
        region.check(fake_cloud.launch(), broken)


def test_buckets_that_are_read_are_looked_at_too():
    reads = ["gs://my-bucket/tokens", "gs://theirs/a", "gs://theirs/b", "gs://closed/c"]
    cloud = fake_cloud.Cloud()
    cloud.answers = [("describe gs://closed", runner.Done(code=1, err="HTTPError 403: no access"))]
    own, theirs, closed = region.check(fake_cloud.launch(), cloud, reads)
    assert own == "gs://my-bucket/runs is in US-WEST4, which has us-west4"
    assert theirs == "gs://theirs is in US-WEST4, which has us-west4"
    assert closed.startswith("not checked, that gs://closed is in us-west4: HTTPError 403")
    cloud.answers = [("describe gs://theirs", runner.Done(code=0, out="EU\n"))]
    with pytest.raises(spec.LaunchError, match="gs://theirs is in EU"):
        region.check(fake_cloud.launch(), cloud, reads)
