"""Gauges of dense health: do patches still say something of their own?

No gauge decides alone: each has a known failure, told in its function and in `GAUGES`. Let labels arbitrate where there
are some.
"""

from workbench.analysis.health.bootstrap import Estimate
from workbench.analysis.health.cosines import (
    SimilarityCurve,
    cls_patch_cosine,
    far_cosine,
    gram_distance,
    locality,
    near_cosine,
    similarity_by_distance,
)
from workbench.analysis.health.gauges import GAUGES, Gauge, gauge_table
from workbench.analysis.health.image_level import lidar, rankme
from workbench.analysis.health.measure import (
    ERROR_SUFFIX,
    dense_health,
    dense_health_with_errors,
    with_error_names,
)
from workbench.analysis.health.outliers import norm_outliers, outlier_dimensions
from workbench.analysis.health.variance import (
    effective_rank,
    position_code,
    positional_match,
    positional_share,
    within_variance,
)

__all__ = [
    "ERROR_SUFFIX",
    "GAUGES",
    "Estimate",
    "Gauge",
    "SimilarityCurve",
    "cls_patch_cosine",
    "dense_health",
    "dense_health_with_errors",
    "effective_rank",
    "far_cosine",
    "gauge_table",
    "gram_distance",
    "lidar",
    "locality",
    "near_cosine",
    "norm_outliers",
    "outlier_dimensions",
    "position_code",
    "positional_match",
    "positional_share",
    "rankme",
    "similarity_by_distance",
    "with_error_names",
    "within_variance",
]
