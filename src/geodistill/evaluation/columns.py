"""The table of all measures: name, unit, direction, format and required images. All other tables are built from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from geodistill.evaluation.rows import Row


@dataclass(frozen=True)
class Column:
    """A measure of a `Row`.

    field: name of the row's field; it is a mean if `spread` names the field with its standard deviation. title: name in
    a table's head, without the unit. short: name in a narrow table. unit: as the head shows it. better: which direction
    is better; None for a condition that is neither. factor: multiplies the field to give that unit. digits: decimals.
    signed: whether positive values get a plus sign. needs: images that the measure uses, besides predictions for test
    images; a differentially private release leaves out figures that need "training" or "test" images. means: one
    sentence. of: computes the measure from the row, where it is no field: from the confusion matrix, for example. It
    returns None for what was not measured.
    """

    field: str
    title: str
    short: str = ""
    unit: str = ""
    better: Literal["higher", "lower"] | None = "higher"
    factor: float = 1.0
    digits: int = 2
    signed: bool = False
    spread: str = ""
    needs: Literal["", "training", "test"] = ""
    means: str = ""
    of: Callable[[Row], float | None] | None = None

    @property
    def head(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def narrow(self) -> str:
        """Return the head for a table with little room."""
        return self.short or self.head

    def value(self, row: Row) -> float | None:
        """Return the row's value in the field's own unit, None if it was not measured."""
        found: Any = getattr(row, self.field) if self.of is None else self.of(row)
        return None if found is None else float(found)

    def text(self, row: Row) -> str:
        """Return the row's value as a table shows it, an empty string if it was not measured.

        >>> row = Row("dpd", 10, "probe", "resnet18", oa_mean=0.8137, oa_std=0.004, ior=0.091)
        >>> [column.text(row) for column in COLUMNS if column.field in ("oa_mean", "ior", "rho")]
        ['81.4 ± 0.4', '+9.1', '']
        """
        value = self.value(row)
        if value is None:
            return ""
        text = f"{self.factor * value:{'+' if self.signed else ''}.{self.digits}f}"
        spread = getattr(row, self.spread) if self.spread else None
        return text if spread is None else f"{text} ± {self.factor * spread:.{self.digits}f}"


def _fraction(field: str, title: str, unit: str = "%", **more: Any) -> Column:
    return Column(field, title, unit=unit, factor=100, digits=1, **more)


COLUMNS = (
    _fraction("oa_mean", "OA", short="OA %", spread="oa_std", means="Overall accuracy on the test images."),
    _fraction("aa_mean", "AA", spread="aa_std", means="Mean of the classes' accuracies."),
    Column("kappa_mean", "kappa", digits=3, means="Cohen's kappa."),
    _fraction("share_of_full", "share of full", short="share", means="OA over that of all real images."),
    _fraction("ior", "over random", "points", short="IOR", signed=True, means="OA over that of random real images."),
    _fraction("hlr", "lost", "points", short="HLR", better="lower", means="OA below that of all real images."),
    Column(
        "rho",
        "nearness ρ",
        short="ρ",
        needs="training",
        means="Distance to the nearest training image over that of held-out images. 1: as far; 0: copies.",
    ),
    Column("rho_pixel", "ρ in pixels", needs="training", means="The same in pixels."),
    Column("rho_feature", "ρ in features", needs="training", means="The same in features."),
    Column(
        "nearest_similarity",
        "nearest similarity",
        digits=3,
        needs="training",
        means="Mean cosine of a training image to the most similar image of its class in the set.",
    ),
    Column("fid", "FID", better="lower", digits=1, needs="test", means="Fréchet distance to the test images."),
    Column("kid", "KID", better="lower", digits=3, needs="test", means="Kernel distance to the test images."),
    Column("images_per_second", "images per second", short="images/s", means="Images made, by the time it took."),
    Column("wall_seconds", "time to make", short="time, s", unit="s", better="lower", digits=0, means="Of all stages."),
    Column(
        "peak_memory_mib", "peak memory", short="memory, MiB", unit="MiB", better="lower", digits=0, means="Of a stage."
    ),
)
BY_FIELD = {column.field: column for column in COLUMNS}
