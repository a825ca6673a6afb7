"""Descriptions in a set that may have been measured in training scenes instead of in its images."""

from geodistill.descriptions import MeasuredDescriber, class_prompt
from geodistill.distilled import DistilledSet
from geodistill.scenes.reading import PLAIN


def foreign_texts(distilled: DistilledSet) -> int:
    """Return how many descriptions of a set tell more than its class names and images do.

    Until 1 December 2026 an image of DPD had the description of the cluster of scenes that it was drawn for. A cluster
    may be a single scene, which can then be found by its description. A description that is measured in the image
    itself reveals nothing that the image does not. Those of a differentially private set follow from noisy means.
    """
    if distilled.about.get("guarantee"):
        return 0
    names = [distilled.classes[label] for label in distilled.labels.tolist()]
    own = MeasuredDescriber(distilled.reading or PLAIN).each(distilled.images, names)
    return sum(
        record.get("description", text) not in (text, class_prompt(name))
        for record, text, name in zip(distilled.records, own, names, strict=True)
    )
