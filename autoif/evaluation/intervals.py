"""Intervals for shares and means: Wilson, cluster bootstrap, paired bootstrap.

A *point* is `(stratum, cluster, numerator, denominator)`. A metric is the mean over its strata of
sum(numerators) / sum(denominators):

    a plain share              one stratum of 0s and 1s over 1
    pooled instructions        one stratum, met over asked of each prompt
    FollowBench's average      a stratum for each of six categories

Points that share a cluster (a prompt, a question, a group of levels) are resampled together. Where
nothing can be (one cluster, lengths that are all equal, fewer than six differences that are) the
interval is (None, None), shown as n/a.

Shapes: C clusters, S strata, R resamples.
"""

from collections import Counter
from operator import truediv

import numpy as np

Point = tuple[str, str, float, float]

RESAMPLES = 1000


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share."""
    from scipy.stats import binomtest  # here: it takes a second, which --help has no use for

    found = binomtest(successes, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def mean(points: list[Point]) -> float:
    """The mean over strata of sum(numerators) / sum(denominators)."""
    above, below = Counter(), Counter()
    for stratum, _, numerator, denominator in points:
        above[stratum] += numerator
        below[stratum] += denominator
    return sum(above[stratum] / below[stratum] for stratum in below) / len(below)


def clusters_of(points: list[Point]) -> set[str]:
    return {cluster for _, cluster, _, _ in points}


def interval(points: list[Point], share: bool = True) -> dict:
    """`{value, low, high, n, clusters, interval}` of a metric; n is the sum of denominators.

    Wilson for a plain share of independent items, and for one of 0 or 1 as if each cluster were an
    item: all draws of a bootstrap would be equal. Else the cluster bootstrap.
    """
    strata, clusters, above, below = zip(*points)
    clusters, value = set(clusters), mean(points)
    # yes or no, of one stratum, and each for itself
    plain = len(set(strata)) == 1 and len(clusters) == len(points)
    plain = plain and set(below) == {1} and set(above) <= {0, 1}
    low, high, kind = None, None, "n/a"
    if len(clusters) > 1 and share and (plain or value in (0, 1)):
        low, high = wilson(round(value * len(clusters)), len(clusters))
        kind = "Wilson"
    elif len(clusters) > 1 and len(set(map(truediv, above, below))) > 1:
        low, high = middle(bootstrap(points, sorted(clusters)))
        kind = "cluster bootstrap"
    measured = {"value": value, "n": sum(below), "clusters": len(clusters)}
    return {**measured, "low": low, "high": high, "interval": kind}


def middle(values_R: np.ndarray) -> tuple[float, float]:
    """The bounds of the middle 95 %."""
    low, high = np.percentile(values_R, [2.5, 97.5])
    return float(low), float(high)


def bootstrap(points: list[Point], clusters: list[str], seed: int = 0) -> np.ndarray:
    """The metric on RESAMPLES draws of `clusters` with replacement, shape (R,).

    One seed gives two models the same draws. A stratum that a draw leaves empty keeps out of that
    draw's mean.
    """
    position = {cluster: i for i, cluster in enumerate(clusters)}
    strata = sorted({stratum for stratum, *_ in points})
    above_CS = np.zeros((len(clusters), len(strata)))
    below_CS = np.zeros((len(clusters), len(strata)))
    for stratum, cluster, numerator, denominator in points:
        above_CS[position[cluster], strata.index(stratum)] += numerator
        below_CS[position[cluster], strata.index(stratum)] += denominator
    # how often each draw has each cluster: a draw of C out of C is a multinomial
    rng = np.random.default_rng(seed)
    even_C = np.full(len(clusters), 1 / len(clusters))
    weights_RC = rng.multinomial(len(clusters), even_C, size=RESAMPLES)
    above_RS, below_RS = weights_RC @ above_CS, weights_RC @ below_CS
    empty_RS = np.full_like(above_RS, np.nan)
    ratios_RS = np.divide(above_RS, below_RS, out=empty_RS, where=below_RS > 0)
    return np.nanmean(ratios_RS, axis=1)


def paired(first: list[Point], second: list[Point]) -> dict | None:
    """`{difference, low, high, clusters}` of second - first on shared clusters, None without."""
    shared = clusters_of(first) & clusters_of(second)
    if not shared:
        return None
    first = [point for point in first if point[1] in shared]
    second = [point for point in second if point[1] in shared]
    clusters, low, high = sorted(shared), None, None
    if len(clusters) > 1:
        low, high = middle(bootstrap(second, clusters) - bootstrap(first, clusters))
    difference = mean(second) - mean(first)
    # every cluster differs alike: no draw shows otherwise, nor does a sign test of fewer than six
    if difference and low == high and len(clusters) < 6:
        low, high = None, None
    return {"difference": difference, "low": low, "high": high, "clusters": len(clusters)}
