"""Privacy: what a distilled set reveals about its training images."""

from geodistill.privacy.nearness import Nearness, RealDistances, nearness_ratio, real_distances

__all__ = ["Nearness", "RealDistances", "nearness_ratio", "real_distances"]
