"""What a distilled set gives away about the real images behind it."""

from geodistill.privacy.nearness import Nearness, RealDistances, nearness_ratio, real_distances

__all__ = ["Nearness", "RealDistances", "nearness_ratio", "real_distances"]
