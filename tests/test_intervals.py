import math
import random

import pytest

from autoif.evaluation import intervals


def plain(outcomes: list[int]) -> list[intervals.Point]:
    return [("", str(i), outcome, 1) for i, outcome in enumerate(outcomes)]


def test_a_share_of_independent_items_gets_its_wilson_interval():
    found = intervals.interval(plain([1] * 416 + [0] * 125))
    assert found["interval"] == "Wilson" and found["n"] == 541
    assert found["value"] == pytest.approx(0.7689, abs=1e-4)
    assert (found["low"], found["high"]) == (
        pytest.approx(0.7316, abs=1e-4),
        pytest.approx(0.8025, abs=1e-4),
    )


def test_wilson_stays_inside_0_and_1():
    assert intervals.wilson(0, 10)[0] == 0 and 0 < intervals.wilson(0, 10)[1] < 0.35
    assert (
        intervals.wilson(10, 10)[1] == pytest.approx(1) and 0.65 < intervals.wilson(10, 10)[0] < 1
    )


def test_wilsons_bounds_are_those_of_its_formula():
    z, share, n = 1.959963984540054, 0.2, 60
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert intervals.wilson(12, 60) == pytest.approx((centre - half, centre + half), abs=1e-9)


@pytest.mark.parametrize(
    "points", [plain([1]), plain([0]), [("", "a", 1, 1), ("", "a", 0, 1), ("", "a", 0, 1)]]
)
def test_of_one_item_or_one_cluster_there_is_no_interval(points):
    found = intervals.interval(points)
    assert (found["low"], found["high"], found["interval"]) == (None, None, "n/a")
    assert found["value"] == pytest.approx(sum(point[2] for point in points) / len(points))
    difference = intervals.paired(points, points)
    assert (difference["low"], difference["high"], difference["clusters"]) == (None, None, 1)


@pytest.mark.parametrize("outcome", [0, 1])
def test_eight_equal_outcomes_are_not_certain_though_a_bootstrap_would_draw_nothing_else(outcome):
    # eight answers, two to each of four prompts
    points = [("", str(i // 2), outcome, 1) for i in range(8)]
    found = intervals.interval(points)
    assert (found["low"], found["high"]) == intervals.wilson(4 * outcome, 4)
    assert found["high"] - found["low"] == pytest.approx(0.49, abs=0.01)
    assert (found["value"], found["interval"], found["n"]) == (outcome, "Wilson", 8)
    # the mean of two categories, and what is counted over several questions
    strata = [("a", "1", 3 * outcome, 3), ("a", "2", 2 * outcome, 2), ("b", "3", outcome, 1)]
    found = intervals.interval(strata)
    assert (found["low"], found["high"]) == intervals.wilson(3 * outcome, 3)


def test_of_equal_lengths_or_ratings_there_is_no_interval():
    found = intervals.interval([("", str(i), 7, 1) for i in range(8)], share=False)
    assert (found["value"], found["low"], found["high"], found["interval"]) == (
        7,
        None,
        None,
        "n/a",
    )


def test_items_that_agree_within_their_cluster_widen_the_interval():
    rng = random.Random(0)
    outcomes = [rng.random() < 0.5 for _ in range(100)]
    clustered = [("", str(i), outcome, 1) for i, outcome in enumerate(outcomes) for _ in range(8)]
    found, alone = intervals.interval(clustered), intervals.interval(plain(outcomes * 8))
    width = found["high"] - found["low"]
    assert (
        found["interval"] == "cluster bootstrap" and found["clusters"] == 100 and found["n"] == 800
    )
    assert width > 2 * (alone["high"] - alone["low"])
    assert width == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 100), rel=0.2)


def test_strata_weigh_the_same_whatever_their_size():
    points = [("large", str(i), 1, 1) for i in range(90)] + [
        ("small", f"s{i}", 0, 1) for i in range(10)
    ]
    assert intervals.mean(points) == 0.5


def test_ratios_pool_numerators_and_denominators():
    assert intervals.mean([("", "a", 1, 4), ("", "b", 1, 1)]) == 2 / 5


def test_equal_models_differ_by_exactly_nothing():
    points = plain([0, 1] * 50)
    assert intervals.paired(points, list(points)) == {
        "difference": 0,
        "low": 0,
        "high": 0,
        "clusters": 100,
    }


def test_three_clusters_that_all_differ_alike_are_not_certain():
    found = intervals.paired(plain([0] * 3), plain([1] * 3))
    assert found == {"difference": 1, "low": None, "high": None, "clusters": 3}


def test_pairing_finds_a_gain_that_two_intervals_hide():
    rng = random.Random(0)
    first = [int(rng.random() < 0.5) for _ in range(200)]
    second = [1 if rng.random() < 0.1 else outcome for outcome in first]
    a, b = intervals.interval(plain(first)), intervals.interval(plain(second))
    found = intervals.paired(plain(first), plain(second))
    assert a["high"] > b["low"]
    assert 0 < found["low"] < found["difference"] < found["high"]


def test_only_shared_clusters_are_compared():
    found = intervals.paired(plain([0, 0, 1]), plain([1, 1]))
    assert found["clusters"] == 2 and found["difference"] == 1


def test_intervals_are_the_same_on_every_run():
    points = [("", str(i // 3), i % 2, 1) for i in range(60)]
    assert intervals.interval(points) == intervals.interval(points)
