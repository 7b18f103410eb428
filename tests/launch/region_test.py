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
    assert "allowed, as the corpus is small" in region.check(allowed, cloud)
    assert cloud.calls[0] == [
        *("gcloud", "storage", "buckets", "describe", "gs://my-bucket", "--format=value(location)")
    ]


def test_what_is_not_known_is_said():
    assert "has us-west4" in region.check(fake_cloud.launch(), fake_cloud.Cloud())
    absent = fake_cloud.Cloud(present="")
    assert "not checked" in region.check(fake_cloud.launch(), absent) and not absent.calls
    broken = fake_cloud.Cloud()
    broken.answers = [("buckets describe", runner.Done(code=1, err="no permission"))]
    with pytest.raises(spec.LaunchError, match="no permission"):
        region.check(fake_cloud.launch(), broken)
