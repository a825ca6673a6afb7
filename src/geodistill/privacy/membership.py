"""Membership inference attacks: find out from a distilled set which images were training images.

The attacker holds nothing but the set. He scores images, and takes those with high scores for training images:

- nearest: how near the nearest distilled image of the same class is (Chen et al., GAN-Leaks, CCS 2020, full black box);
- relative: how much nearer the nearest distilled image is than the others of the class, in standard deviations. An
  image that is near all of them is no evidence (calibration, Watson et al., ICLR 2022);
- density: the density of the distilled images of the same class at the image, a sum of Gaussians (Hilprecht et al.,
  PoPETs 2019, and van Breugel et al., DOMIAS, AISTATS 2023, without its reference set, which this attacker lacks);
- shadow: logistic regression on all these scores, trained on sets distilled from known halves of the training images
  (Shokri et al., S&P 2017).

The first three are computed on pixels, on structure (SSIM), on features of the pretrained backbone and, if the base is
known, on its latents (see `latents`). The attacker must separate training images from held-out images, which cannot
have been training images. An attack is judged by its success at a low false positive rate, not by its average success
(Carlini et al., S&P 2022).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError
from geodistill.networks import backbone_features
from geodistill.privacy.nearness import pixel_vectors, symmetries
from geodistill.privacy.neighbours import grey, ssim
from geodistill.processes import processes
from geodistill.scenes.pixels import Images, blocks_of
from geodistill.seeding import generator

# False positive rates at which the share of training images found is reported.
RATES = (0.01, 0.001)
# A set leaks if the whole interval of the share of training images found lies above LEAK times the false positive rate.
# This rate is 1 %. With fewer than 1,000 held-out images it is the rate that ten of them make, because the rank of
# fewer images is left to chance.
LEAK = 2
_ERRORS = 10
SHADOW = "shadow"
_RESAMPLES = 200
_POINTS = 40
_BLOCK = 1024
# Smallest number of distilled images of a class that shows what distance is usual.
USUAL = 3
# Share of the images that count as most isolated, and their smallest number.
ISOLATED, _FEWEST = 0.05, 20


@dataclass(frozen=True)
class Interval:
    """A value with the 2.5th and 97.5th percentiles of its bootstrap distribution over resampled images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Attack:
    """How well an attack separates training images from held-out images.

    `auc`: the area under the ROC curve, 0.5 for guessing, 1 for certainty. `found`: the share of training images found
    at each false positive rate of RATES; None if there are too few held-out images for the rate. `judged`: the share
    found at `rate`, which decides on a leak (see LEAK); None with 20 or fewer images `held_out`. `curve`: points of the
    ROC curve, (false positive rate, share found), in ascending order.
    """

    name: str
    auc: Interval
    found: tuple[Interval | None, ...]
    rate: float
    held_out: int
    judged: Interval | None
    curve: tuple[tuple[float, float], ...]

    @property
    def leaks(self) -> bool:
        """Whether the share found is far above the false positive rate; for attacks without a null (see null)."""
        return self.judged is not None and self.judged.low > LEAK * self.rate


@dataclass(frozen=True)
class Space:
    """A representation in which images are compared.

    real: maps uint8 query images [n, 3, s, s] to float32 [n, ...]. drawn: maps images of a set to [views, n, ...]; the
    nearest view counts. Vectors are compared by L2 distance, images [n, 1, h, w] by 1 - SSIM.
    """

    name: str
    real: Callable[[Tensor], Tensor]
    drawn: Callable[[Tensor], Tensor]


def in_orientations(real: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that applies `real` to images in each of eight orientations and returns [8, n, ...]."""
    return lambda images: torch.stack([real(view) for view in symmetries(images)])


def _features(images: Tensor) -> Tensor:
    return backbone_features(images)


SPACES = tuple(
    Space(name, real, in_orientations(real))
    for name, real in (("pixels", pixel_vectors), ("structure", grey), ("features", _features))
)


@dataclass(frozen=True)
class Seen:
    """Images as the attacks see them: `vectors` float32 [n, ...] in each of `spaces`, and class `labels` int64 [n]."""

    vectors: tuple[Tensor, ...]
    labels: Tensor
    spaces: tuple[Space, ...] = SPACES

    @property
    def features(self) -> Tensor:
        """The pretrained backbone's features, float32 [n, 1280]: `spaces` begins with SPACES, which ends with them."""
        return self.vectors[len(SPACES) - 1]


def seen(images: Images, labels: Tensor, spaces: tuple[Space, ...] = SPACES) -> Seen:
    """Return uint8 images [n, 3, s, s] of classes int64 [n], perhaps in files, as the attacks in `spaces` see them."""
    blocks = blocks_of(len(images)) or [slice(0)]
    parts = processes().shared(blocks, lambda block: _vectors(images[block], spaces))
    return Seen(tuple(torch.cat([part[k] for part in parts]) for k in range(len(spaces))), labels, spaces)


def _vectors(images: Tensor, spaces: tuple[Space, ...]) -> list[Tensor]:
    return [space.real(images) for space in spaces]


def scores(distilled: DistilledSet, classes: tuple[str, ...], *groups: Seen) -> dict[str, Tensor]:
    """Return scores float32 [n] by attack: how much each image of `groups`, one after the other, looks like a member.

    A member is a training image. The shadow attack is not included. The labels of images are indices into `classes`.
    An image of a class that the set lacks gets the lowest score of all.
    """
    own = torch.tensor([classes.index(name) for name in distilled.classes])[distilled.labels]
    found: dict[str, Tensor] = {}
    for rank, space in enumerate(groups[0].spaces):
        views = space.drawn(distilled.images)
        kinds = [_kinds(images.vectors[rank], images.labels, views, own) for images in groups]
        found |= {f"{kind}, {space.name}": torch.cat([one[kind] for one in kinds]) for kind in kinds[0]}
    return {name: _finite(values) for name, values in found.items()}


def _finite(values: Tensor) -> Tensor:
    """Return `values` with the smallest finite value in place of those that are not finite."""
    return torch.where(values.isfinite(), values, values[values.isfinite()].min())


def _kinds(queries: Tensor, labels: Tensor, views: Tensor, own: Tensor) -> dict[str, Tensor]:
    """Return scores [n] by kind of attack, of `queries` with classes `labels` against `views` with classes `own`.

    `views` has shape [v, m, ...]: v views of each of m distilled images.
    """
    width = _width(views)
    found = {kind: torch.empty(len(labels)) for kind in ("nearest", "relative", "density")}
    for label in labels.unique():
        mask, same = labels == label, own == label
        distances = distances_to(queries[mask], views[:, same])
        # With too few images of the class, the images of all classes show what distance is usual.
        usual = distances if int(same.sum()) >= USUAL else distances_to(queries[mask], views)
        for kind, values in scores_of(distances, width, usual).items():
            found[kind][mask] = values
    return found


def scores_of(distances: Tensor, width: float, usual: Tensor | None = None) -> dict[str, Tensor]:
    """Return scores [n] by kind of attack, from distances [n, m] to the set's images of the same class.

    width: of the Gaussians of the density. usual: distances [n, k] that show what is usual; `distances` if None.
    """
    usual = distances if usual is None else usual
    nearest = distances.amin(1)
    # One distance has no spread.
    spread = usual.std(1) if usual.shape[1] > 1 else torch.ones(len(usual))
    return {
        "nearest": -nearest,
        "relative": (usual.mean(1) - nearest) / spread.clamp(min=1e-6),
        "density": _log_density(distances, width),
    }


def isolated(known: Seen, others: Seen) -> tuple[Tensor, Tensor]:
    """Return which of the training images `known`, bool [n], and of `others`, bool [m], are the most isolated.

    The isolation of an image is its distance, in the backbone's features, to the nearest training image of its class
    other than itself. The share ISOLATED of each group is taken. An image unlike all others is the easiest one to find
    (Carlini et al., S&P 2022).
    """
    own = _to_nearest(known, known, itself=True)
    return _largest(own), _largest(_to_nearest(others, known, itself=False))


def _to_nearest(queries: Seen, known: Seen, *, itself: bool) -> Tensor:
    """Return the distance [n] of each of `queries` to the nearest of `known` in its class; 0 if there is none.

    `itself`: `queries` and `known` are the same images, and an image does not count as its own neighbour.
    """
    found = torch.zeros(len(queries.labels))
    for label in queries.labels.unique():
        asked, own = queries.labels == label, known.labels == label
        real = known.features[own]
        if len(real) > itself:
            places = torch.arange(len(real)) if itself else None
            found[asked] = _nearest_in_blocks(queries.features[asked], real, places)
    return found


def _nearest_in_blocks(queries: Tensor, real: Tensor, places: Tensor | None) -> Tensor:
    """Return the distance [n] of queries [n, d] to the nearest of `real` [m, d], other than that at their `places`."""
    nearest = []
    for start in range(0, len(queries), _BLOCK):
        apart = _apart(queries[start : start + _BLOCK], real)
        if places is not None:
            apart.scatter_(1, places[start : start + _BLOCK, None], torch.inf)
        nearest.append(apart.amin(1))
    return torch.cat(nearest)


def _largest(values: Tensor) -> Tensor:
    count = min(len(values), max(_FEWEST, round(ISOLATED * len(values))))
    return torch.zeros(len(values), dtype=torch.bool).index_fill(0, values.topk(count).indices, True)


def rate_of(held_out: int) -> float:
    """Return the false positive rate at which a leak is judged with `held_out` held-out images (see LEAK)."""
    return max(RATES[0], _ERRORS / held_out) if held_out else 1.0


def too_little(images: int, train: int, held_out: int) -> str:
    """Return why no attack could show a leak; "" if one could. An image reveals about one training image at most."""
    most, bar = images / train, LEAK * rate_of(held_out)
    if most > bar:
        return ""
    told = f"a leak is believed above {bar:.0%}" if bar < 1 else "no leak can be believed"
    return (
        f"{images} images give away {most:.1%} of {train} training images at most, and with {held_out} held-out images "
        f"{told}"
    )


def attack(name: str, members: Tensor, others: Tensor, *, seed: int = 0) -> Attack:
    """Return how well scores separate `members` float32 [n] from `others` float32 [m].

    Raises ConfigError if either is empty.
    """
    if not len(members) or not len(others):
        raise ConfigError("no images to tell apart: a membership attack needs training and held-out images")
    random, rate = generator(seed, "membership"), rate_of(len(others))
    drawn = [_measures(resampled(members, random), resampled(others, random), rate) for _ in range(_RESAMPLES)]
    intervals: list[Interval | None] = []
    for value, *again in zip(_measures(members, others, rate), *drawn, strict=True):
        # A measure that needs more held-out images than there are has no value.
        intervals.append(None if value is None else interval(value, again))
    auc, judged, *found = intervals
    assert auc is not None
    return Attack(name, auc, tuple(found), rate, len(others), judged, _curve(members, others))


def shadow_scores(
    shadows: Sequence[tuple[dict[str, Tensor], Tensor]], target: dict[str, Tensor], *, seed: int = 0
) -> Tensor:
    """Return the scores of the shadow attack, float32 [n], for images whose other scores are `target`.

    `shadows`: for each set distilled from a known part of the training images, the scores of all training images, and a
    mask bool [m] of those in the part. Scores are standardised within each set, which the attacker can do too.
    """
    rows = torch.cat([_standard(known) for known, _ in shadows])
    inside = torch.cat([members for _, members in shadows])
    model = LogisticRegression(C=1.0, max_iter=1000, random_state=seed, class_weight="balanced")
    model.fit(rows.numpy(), inside.numpy())
    return torch.from_numpy(model.decision_function(_standard(target).numpy())).float()


def _standard(found: dict[str, Tensor]) -> Tensor:
    columns = torch.stack([found[name] for name in sorted(found)], dim=1)
    return (columns - columns.mean(0)) / columns.std(0).clamp(min=1e-6)


def distances_to(queries: Tensor, views: Tensor) -> Tensor:
    """Return float32 [n, m]: distances of queries [n, ...] to the nearest view of each distilled image.

    `views` [v, m, ...] are v views of m distilled images. The distance is 1 - SSIM for grey images, L2 for vectors.
    """
    if not views.shape[1]:
        return torch.full((len(queries), 1), torch.inf)
    apart = _apart if queries.ndim == 2 else _unlike
    return torch.cat([torch.stack([apart(part, view) for view in views]).amin(0) for part in queries.split(_BLOCK)])


def _apart(queries: Tensor, view: Tensor) -> Tensor:
    return torch.cdist(queries, view, compute_mode="donot_use_mm_for_euclid_dist")


def _unlike(queries: Tensor, view: Tensor) -> Tensor:
    return (1 - ssim(queries, view)).clamp(min=0)


def _log_density(distances: Tensor, width: float) -> Tensor:
    """Return the log of the mean of Gaussians [n], up to a constant, at distances [n, m]."""
    return torch.logsumexp(-(distances**2) / (2 * width**2), dim=1) - math.log(distances.shape[1])


def _width(views: Tensor) -> float:
    """Return the median distance of a distilled image to the nearest other one, in any orientation."""
    return width_of(nearest_other(distances_to(views[0], views)))


def nearest_other(distances: Tensor) -> Tensor:
    """Return the distance [k] of each image to the nearest other one, from distances [k, k]; empty for a single one."""
    if len(distances) < 2:
        return distances.new_empty(0)
    apart = distances.clone()
    apart.fill_diagonal_(torch.inf)
    return apart.amin(1)


def width_of(nearest: Tensor) -> float:
    """Return the width of the density's Gaussians: the median of distances `nearest` [k], or 1 if there are none."""
    return max(float(nearest.median()), 1e-3) if len(nearest) else 1.0


def _measures(members: Tensor, others: Tensor, rate: float) -> tuple[float | None, ...]:
    """Return the area under the ROC curve, and the share of members found at `rate` and at each of RATES."""
    ranked = others.sort().values
    below = torch.searchsorted(ranked, members, side="left") + torch.searchsorted(ranked, members, side="right")
    judged = found_at(members, ranked, rate) if rate < 1 / LEAK else None
    shares = (found_at(members, ranked, one) for one in RATES)
    return float(below.double().mean()) / (2 * len(others)), judged, *shares


def found_at(members: Tensor, ranked: Tensor, rate: float) -> float | None:
    """Return the share of members found at false positive rate `rate`; None if this allows no false positive.

    `ranked`: the scores of the others in ascending order.
    """
    allowed = math.floor(rate * len(ranked) + 1e-9)
    return float((members > ranked[-1 - allowed]).double().mean()) if allowed else None


def _curve(members: Tensor, others: Tensor) -> tuple[tuple[float, float], ...]:
    ranked = others.sort().values
    errors = torch.logspace(0, math.log10(len(others)), min(_POINTS, len(others))).round().long().unique()
    shares = [float((members > ranked[-int(allowed)]).double().mean()) for allowed in errors[:-1] + 1]
    return tuple((int(allowed) / len(others), share) for allowed, share in zip(errors, shares, strict=False))


def resampled(values: Tensor, random: torch.Generator) -> Tensor:
    """Return a bootstrap sample of `values` [n]: n draws by `random` with replacement."""
    return values[torch.randint(len(values), (len(values),), generator=random)]


def interval(value: float, drawn: Sequence[float | None]) -> Interval:
    """Return `value` with the 2.5th and 97.5th percentiles of the values `drawn` that are not None."""
    ends = torch.tensor([one for one in drawn if one is not None], dtype=torch.float64)
    low, high = torch.quantile(ends, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value, low, high)
