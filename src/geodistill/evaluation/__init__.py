"""Evaluation of a distilled set: train on it, test on real images, compare.

`geodistill.evaluation.evaluate` does the whole evaluation; this module exports its parts.
"""

from geodistill.evaluation.measures import Measures, hlr, ior, mean_std, measure, share
from geodistill.evaluation.protocols import PROTOCOLS, train_and_predict
from geodistill.networks import NETWORKS, backbone_features, build_network

__all__ = [
    "NETWORKS",
    "PROTOCOLS",
    "Measures",
    "backbone_features",
    "build_network",
    "hlr",
    "ior",
    "mean_std",
    "measure",
    "share",
    "train_and_predict",
]
