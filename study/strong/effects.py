"""Intervals of the second study: families and seeds are both drawn, by Student's t.

A gain is measured in S seeds (of sampling and training) on C clusters (families of constraints, or
prompts of a benchmark). Both are samples: other seeds and other families would give another one.

    gain of a seed on a cluster = mean + effect of the seed + effect of the cluster + the rest

The variance of the mean is the sum of the three components over S, C and S x C; its degrees of
freedom are Satterthwaite's. Of one seed only the clusters can be told, and nothing of other seeds.

Shapes: S seeds, C clusters, M metrics whose mean is taken.
"""

import math

import numpy as np

POWER = 0.8  # with which a difference is to be found


def of_clusters(sums_CM2: np.ndarray) -> np.ndarray:
    """What each cluster adds to a column, shape (C,); their mean is the column's value.

    `sums_CM2` are numerators and denominators: a value is the mean over metrics of
    sum(numerators) / sum(denominators), linear in its clusters by their influence on that share.
    """
    above_CM, below_CM = sums_CM2[..., 0], sums_CM2[..., 1]
    total_M = below_CM.sum(axis=0)
    share_M = above_CM.sum(axis=0) / total_M
    influence_CM = len(sums_CM2) * (above_CM - share_M * below_CM) / total_M
    return (share_M + influence_CM).mean(axis=1)


def components(values_SC: np.ndarray) -> tuple[float, float, float]:
    """The variances (of seeds, of clusters, of the rest); none is below 0."""
    seeds, clusters = values_SC.shape
    seed_S1, cluster_C = values_SC.mean(axis=1, keepdims=True), values_SC.mean(axis=0)
    if seeds == 1:
        return 0.0, float(cluster_C.var(ddof=1)), 0.0
    rest_SC = values_SC - seed_S1 - cluster_C + values_SC.mean()
    rest = float((rest_SC**2).sum() / ((seeds - 1) * (clusters - 1)))
    seed = max(float(seed_S1.var(ddof=1)) - rest / clusters, 0.0)
    cluster = max(float(cluster_C.var(ddof=1)) - rest / seeds, 0.0)
    return seed, cluster, rest


def error(parts: tuple[float, float, float], seeds: int, clusters: int) -> tuple[float, float]:
    """(standard error of a mean over seeds and clusters, its degrees of freedom)."""
    seed, cluster, rest = parts
    variance = seed / seeds + cluster / clusters + rest / (seeds * clusters)
    if seeds == 1 or variance == 0:
        return math.sqrt(variance), clusters - 1
    # the variance is made of mean squares, those of seeds and of clusters less that of the rest; of
    # a component that is 0 there is none
    squares = []
    if seed > 0:
        squares.append(((clusters * seed + rest) ** 2, seeds - 1))
    if cluster > 0:
        squares.append(((seeds * cluster + rest) ** 2, clusters - 1))
    if len(squares) != 1:
        squares.append((rest**2, (seeds - 1) * (clusters - 1)))
    below = sum(square / freedom for square, freedom in squares)
    return math.sqrt(variance), max(1.0, (seeds * clusters * variance) ** 2 / below)


def interval(values_SC: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): 95 %; without bounds (nan) where there is one cluster."""
    from scipy.stats import t  # here: it takes a second

    mean, clusters = float(values_SC.mean()), values_SC.shape[1]
    if clusters == 1:
        return mean, math.nan, math.nan
    deviation, freedom = error(components(values_SC), *values_SC.shape)
    half = float(t.ppf(0.975, freedom)) * deviation
    return mean, mean - half, mean + half


def seeds_needed(values_SC: np.ndarray, difference: float, most: int = 100) -> int | None:
    """How many seeds find a true `difference` beyond noise with POWER, by the seeds that are there.

    None where more than `most` would not: then the clusters are too few.
    """
    from scipy.stats import t

    parts, clusters = components(values_SC), values_SC.shape[1]
    for seeds in range(2, most + 1):
        deviation, freedom = error(parts, seeds, clusters)
        if difference >= float(t.ppf(0.975, freedom) + t.ppf(POWER, freedom)) * deviation:
            return seeds
    return None
