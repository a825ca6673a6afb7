"""What a distilled set gives away about the real images behind it."""

from geodistill.privacy.nearness import Nearness, nearness_ratio

__all__ = ["Nearness", "nearness_ratio"]
