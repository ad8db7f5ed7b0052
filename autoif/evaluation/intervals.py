"""Intervals for shares and means: Wilson, the cluster bootstrap, and the paired bootstrap of two models.

A *point* is `(stratum, cluster, numerator, denominator)`. A metric is the mean over its strata of sum(numerators) /
sum(denominators): a plain share is one stratum of 0s and 1s, FollowBench's average over six categories is six
strata. Points that share a cluster (a prompt, a question, a group of levels) are resampled together.
"""

import math

import numpy as np

Point = tuple[str, str, float, float]

RESAMPLES = 1000
Z95 = 1.959963984540054


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share."""
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return min(share, max(0.0, centre - half)), max(
        share, min(1.0, centre + half)
    )  # rounding may pass the share


def mean(points: list[Point]) -> float:
    """The mean over strata of sum(numerators) / sum(denominators)."""
    totals: dict[str, list[float]] = {}
    for stratum, _, numerator, denominator in points:
        total = totals.setdefault(stratum, [0.0, 0.0])
        total[0] += numerator
        total[1] += denominator
    return sum(above / below for above, below in totals.values()) / len(totals)


def interval(points: list[Point]) -> dict:
    """`{value, low, high, n, clusters, interval}`: Wilson for a plain share of independent items, else bootstrap.

    n is the sum of the denominators: prompts, instructions, questions, games by weight.
    """
    clusters = {cluster for _, cluster, _, _ in points}
    described = {
        "value": mean(points),
        "n": sum(below for _, _, _, below in points),
        "clusters": len(clusters),
    }
    plain = (
        len(clusters) == len(points)
        and len({stratum for stratum, *_ in points}) == 1
        and all(below == 1 and above in (0, 1) for _, _, above, below in points)
    )
    if plain:
        low, high = wilson(sum(above for _, _, above, _ in points), len(points))
        return {**described, "low": low, "high": high, "interval": "Wilson"}
    low, high = np.percentile(bootstrap(points, sorted(clusters)), [2.5, 97.5])
    return {**described, "low": float(low), "high": float(high), "interval": "cluster bootstrap"}


def bootstrap(points: list[Point], clusters: list[str], seed: int = 0) -> np.ndarray:
    """The metric on RESAMPLES draws of `clusters` with replacement; one seed gives two models the same draws.

    A stratum that a draw leaves empty keeps out of that draw's mean.
    """
    position = {cluster: i for i, cluster in enumerate(clusters)}
    strata = sorted({stratum for stratum, *_ in points})
    above, below = np.zeros((len(clusters), len(strata))), np.zeros((len(clusters), len(strata)))
    for stratum, cluster, numerator, denominator in points:
        above[position[cluster], strata.index(stratum)] += numerator
        below[position[cluster], strata.index(stratum)] += denominator
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(
        len(clusters), np.full(len(clusters), 1 / len(clusters)), size=RESAMPLES
    )
    drawn_above, drawn_below = weights @ above, weights @ below
    ratios = np.divide(
        drawn_above, drawn_below, out=np.full_like(drawn_above, np.nan), where=drawn_below > 0
    )
    return np.nanmean(ratios, axis=1)


def paired(first: list[Point], second: list[Point]) -> dict | None:
    """`{difference, low, high, clusters}` of second - first over the clusters that both have, drawn together; None
    without such clusters."""
    shared = sorted({point[1] for point in first} & {point[1] for point in second})
    if not shared:
        return None
    kept = set(shared)
    first = [point for point in first if point[1] in kept]
    second = [point for point in second if point[1] in kept]
    low, high = np.percentile(bootstrap(second, shared) - bootstrap(first, shared), [2.5, 97.5])
    return {
        "difference": mean(second) - mean(first),
        "low": float(low),
        "high": float(high),
        "clusters": len(shared),
    }
