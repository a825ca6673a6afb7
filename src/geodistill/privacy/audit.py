"""The audit: what a distilled set reveals about the training images, compared with what held-out images reveal."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from geodistill.distilled import DistilledSet, told_strays
from geodistill.errors import ConfigError
from geodistill.networks import backbone_features
from geodistill.prior.base import Prior
from geodistill.privacy.aligned import AlignedNearness, aligned_nearness
from geodistill.privacy.attribution import Attribution, attribute
from geodistill.privacy.copies import COPY, CopySearch, are_copies
from geodistill.privacy.copyprint import Copyprint, learn_copyprint
from geodistill.privacy.latents import STRENGTH, latent_spaces
from geodistill.privacy.membership import (
    ISOLATED,
    SHADOW,
    SPACES,
    Attack,
    Seen,
    attack,
    isolated,
    scores,
    seen,
    shadow_scores,
    too_little,
)
from geodistill.privacy.nearness import MAX_HELD_OUT
from geodistill.privacy.neighbours import Neighbours, embedding_search, grey, structure_search
from geodistill.privacy.null import ALARM, Null, null_of
from geodistill.privacy.replay import Draws, Replay, replay
from geodistill.processes import processes
from geodistill.progress import progress
from geodistill.run import write_atomic
from geodistill.scenes.pixels import Pixels, blocks_of
from geodistill.scenes.scenes import SceneData, Scenes
from geodistill.scenes.splits import fair_share
from geodistill.seeding import generator

# Measures of nearness: `copies` compares pixels, structure is SSIM.
PIXELS, STRUCTURE, FEATURES, COPYPRINT = MEASURES = ("pixels", "structure", "features", "copy detection")
# An image is nearer than chance if at most this share of the held-out images is nearer than it.
FRESH = 0.01
# Number of training images that are audited like images of the set, to show what a full leak looks like.
_LEAKED = 100
# Largest number of training images, and of held-out images, that the attacks are made on; 33 kB of memory for each.
# The search for copies and neighbours covers all training images, however many.
_ATTACKED = 2**15
# Findings that a user can make the audit fail on.
FAILURES = ("copy", "membership")
REPLAYABLE = (
    "FAILED: the images follow from seeds that are in the set or can be guessed. Anyone who has the base can repeat "
    "the sampling, and test for any scene whether an image was sampled from it. Do not share the set. Removing the "
    "seeds does not help: run the `geodistill distill` command that made it again, without --reproducible. It uses all "
    "stages up to the adapter again and draws the images anew, from a secret."
)
_FEW_SUSPECTS = "a class has a single real image, so there is no other to compare with"
_UNMEASURED = "Whether the set reveals which images were training images cannot be measured"
# A set, and the indices of the training images it was distilled from, for the shadow attack of `membership`.
Shadow = tuple[DistilledSet, Tensor]


def best_of(attacks: Sequence[Attack]) -> Attack | None:
    """Return the attack with the highest lower limit of the share found, or of the AUC; None without attacks."""
    return max(attacks, key=lambda one: one.judged.low if one.judged else one.auc.low, default=None)


@dataclass(frozen=True)
class Known:
    """What is known about how a set was made, besides its images.

    starts: int64 [n], the training scene that each image was sampled from (see attribution). shadows: sets made in the
    same way from known parts of the training scenes, for the shadow attack. overlap, replayable: copied into the Audit.
    prior: the base, for attacks in its latents. strength: the noise level that candidates started from. draws: how the
    images were sampled, for the replay. beside: names of files in the set's folder that are for the data owner alone.
    strays: names of files there that are not of the set. unchecked: why the base takes no part, "" if it does.
    untested: why the sampling of images that follow scenes cannot be repeated without `draws`. foreign: the number of
    descriptions that do not follow from the images (see privacy.texts).
    """

    starts: Tensor | None = None
    shadows: Sequence[Shadow] = ()
    overlap: str = ""
    replayable: bool = False
    prior: Prior | None = None
    strength: float = STRENGTH
    draws: Draws | None = None
    beside: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    unchecked: str = ""
    untested: str = ""
    foreign: int = 0


@dataclass(frozen=True)
class Reading:
    """How near images are to the training images under one of MEASURES.

    `own`, `held_out`, `leaked`: the distance of each image of the distilled set, of held-out images (empty if there are
    none) and of some training images, in order. `own_ratios`, `held_out_ratios`: the distance ratios.
    """

    measure: str
    own: tuple[float, ...]
    held_out: tuple[float, ...]
    leaked: tuple[float, ...]
    own_ratios: tuple[float, ...]
    held_out_ratios: tuple[float, ...]

    @property
    def nearer(self) -> float | None:
        """The share of the set below the FRESH quantile of the held-out distances; about FRESH if nothing leaks."""
        if not self.held_out:
            return None
        limit = torch.tensor(self.held_out).quantile(FRESH)
        return float((torch.tensor(self.own) < limit).float().mean())


@dataclass(frozen=True)
class ImageAudit:
    """One image: its index in the set, its class and rank (`name`), and its nearest training image in pixels.

    `nearest_index`: the index of that training image; `nearest`: its name. `distances`, `ratios`: values under each of
    MEASURES. `copy`: whether the image is a copy (see `copies`).
    """

    index: int
    name: str
    nearest_index: int
    nearest: str
    distances: dict[str, float]
    ratios: dict[str, float]
    copy: bool


@dataclass(frozen=True)
class Audit:
    """The findings of an audit.

    `images`: the most suspicious first. `held_out_flagged`: the share of held-out images that the copy test takes for
    copies; it should be about 0. `leaked_flagged`: the same share of training images; it should be 1. `readings`: one
    for each of MEASURES. `nearness` (see privacy.aligned), `attacks` (see privacy.membership): None and empty without
    held-out images. `null` (see privacy.null): None with too few held-out images.
    `isolated`: the best attack, made on the most isolated images alone (see membership.isolated).
    `attribution`, `replay` (see privacy.replay): None if the images were not sampled from scenes, or if it is not known
    from which. `replayable`: whether the images follow from seeds that the set contains or that can be guessed.
    `beside`: names of files in the set's folder that are for the data owner alone; `strays`: of files that are not of
    the set, so nothing is known about them.
    `overlap`: a sentence, without its full stop, on how many of the training images the base of the set's run was
    trained on; "" if none are known. `unchecked`: why the base takes no part in the audit, "" if it does. `untested`:
    why there is no replay of images that follow scenes; "" if there is one, or if none follows a scene. `foreign`: the
    number of descriptions that do not follow from the images.
    """

    images: tuple[ImageAudit, ...]
    threshold: float
    held_out_flagged: float | None
    held_out_count: int
    train_count: int
    leaked_flagged: float
    readings: tuple[Reading, ...]
    nearness: AlignedNearness | None
    attacks: tuple[Attack, ...]
    attribution: Attribution | None
    null: Null | None
    replay: Replay | None = None
    isolated: Attack | None = None
    overlap: str = ""
    replayable: bool = False
    beside: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    unchecked: str = ""
    untested: str = ""
    foreign: int = 0

    @property
    def copies(self) -> int:
        """The number of images that are copies."""
        return sum(image.copy for image in self.images)

    @property
    def best_attack(self) -> Attack | None:
        """The best attack according to `best_of`; None without attacks."""
        return best_of(self.attacks)

    @property
    def leaks(self) -> bool:
        """Whether the membership attacks or an outsider's replay identify training images."""
        return self.tells_members or self.outsider_names

    @property
    def outsider_names(self) -> bool:
        """Whether an outsider who replays the set identifies significantly more starts than guessing does."""
        return self.replay is not None and self.replay.p_outsider <= ALARM

    @property
    def tells_members(self) -> bool:
        """Whether the attacks find more training images than they find with sets of held-out images.

        The shadow attack has no null distribution. It must find more than LEAK times the false positive rate.
        """
        shadow = any(one.leaks for one in self.attacks if one.name == SHADOW)
        return shadow or (self.null is not None and self.null.leaks)

    def fails(self, on: Sequence[str]) -> bool:
        """Return whether the audit fails; `on` names the FAILURES that count.

        A replayable set fails in any case, and so does a set whose folder holds files that are for the owner alone, or
        that are not of the set, and one with descriptions of training images. "membership" covers the attacks and an
        outsider's replay, and fails if the base that drew the set is missing, or if images follow scenes and cannot be
        replayed, because nobody knows then what they would find.
        """
        return (
            self.replayable
            or bool(self.beside or self.strays or self.foreign)
            or ("copy" in on and self.copies > 0)
            or ("membership" in on and (self.leaks or bool(self.unchecked or self.untested)))
        )

    @property
    def verdict(self) -> str:
        """The findings in a few sentences, with the thresholds and the images that these were checked on."""
        found = f"{self.copies} of {len(self.images)} images are copies of training images."
        checked = ""
        if self.held_out_flagged is not None:
            checked = f"{self.held_out_flagged:.1%} of {self.held_out_count} held-out real images and "
        found = f"{REPLAYABLE} {found}" if self.replayable else found
        if self.beside:
            found = (
                f"FAILED: the folder of the set holds {', '.join(self.beside)}, for the owner of the data alone: move "
                f"that elsewhere before you share the folder. {found}"
            )
        if self.strays:
            found = (
                f"FAILED: the folder of the set holds {told_strays(self.strays)}. They were not audited, but whoever "
                f"gets the folder has them: remove them. {found}"
            )
        if self.foreign:
            found = (
                f"FAILED: {self.foreign} descriptions of the set were not measured in its images. They describe groups "
                "of training images, and a group can be a single one, which is found by its description. Run the "
                f"`geodistill distill` command that made the set again: it describes the images themselves. {found}"
            )
        return (
            f"{found} An image is a copy if the distance to its nearest training image is below {self.threshold} times "
            f"that to the second nearest; this rule flags {checked}{self.leaked_flagged:.0%} of training images."
            f"{self._told_of_nearness()} {self._told_of_members()}{self._told_of_starts()}{self._told_of_base()}"
            f"{self._told_of_untested()}"
        )

    def _told_of_base(self) -> str:
        if not self.unchecked:
            return ""
        left_out = "Attacks in its latents, the replay and what it was trained on are left out"
        return f" NOT CHECKED: {self.unchecked}. {left_out}, so a leak may be missed."

    def _told_of_untested(self) -> str:
        if not self.untested:
            return ""
        return (
            " NOT CHECKED: the images start from training images or means of them, and no replay was made: "
            f"{self.untested}. A leak may be missed."
        )

    def _told_of_nearness(self) -> str:
        near = self.nearness
        if near is None:
            return ""
        return (
            f" Aligned nearness is {near.ratio:.2f} ({near.low:.2f} to {near.high:.2f}); 1 is no nearer than equally "
            f"sharp held-out images. The set is {near.sharpness:.2f} times as sharp as held-out images."
        )

    def _told_of_starts(self) -> str:
        if self.attribution is None:
            return ""
        return (
            f" For {self.attribution.recognised:.0%} of the images, the data owner can identify by structure the "
            f"training image it was sampled from (guessing: {self.attribution.chance:.1%}).{self._told_of_replay()}"
        )

    def _told_of_replay(self) -> str:
        found = self.replay
        if found is None:
            return ""
        return (
            f" In the replay test of {found.images} images with {found.suspects} suspects each, an outsider identifies "
            f"{found.outsider} sources ({_p(found.p_outsider)}), an insider with adapter and secret "
            f"{found.insider} ({_p(found.p_insider)}), and guessing {found.guessed:.1f}."
            f"{' The set leaks: anyone who has the base can identify sources.' if self.outsider_names else ''}"
        )

    def _told_of_members(self) -> str:
        best = self.best_attack
        if best is None:
            return f"{_UNMEASURED} without held-out images."
        if best.judged is None:
            return (
                f"The best of {len(self.attacks)} attacks distinguishes training images from held-out ones with an AUC "
                f"of {best.auc.value:.3f} (0.5: guessing). The held-out images are too few to say more."
            )
        too_few = too_little(len(self.images), self.train_count, best.held_out)
        null, found = self.null, best.judged
        told = "The set reveals" if self.tells_members else "The set does not reveal"
        if null is None:
            return f"{_UNMEASURED}: {too_few or 'too few held-out images of the classes of the set'}."
        # Too few images can hide a leak, but they cannot cause one.
        if too_few and not self.tells_members:
            return f"{_UNMEASURED}: {too_few}."
        value, low, high = (count / null.images for count in null.exposed)
        exposed = (
            f" About {value:.0%} of its images ({low:.0%} to {high:.0%}) expose one." if self.tells_members else ""
        )
        return (
            f"{told} which images were training images: at {best.rate:.0%} false positives, the best of "
            f"{len(self.attacks)} attacks ({best.name}) finds {found.value:.1%} of them ({found.low:.1%} to "
            f"{found.high:.1%}).{_told_of_null(null)}"
            f"{exposed}"
            f"{self._told_of_isolated(best)}"
        )

    def _told_of_isolated(self, best: Attack) -> str:
        if self.isolated is None:
            return ""
        worst = self.isolated.auc
        return (
            f" The attack's AUC is {best.auc.value:.2f}, and {worst.value:.2f} ({worst.low:.2f} to {worst.high:.2f}) "
            f"among the {ISOLATED:.0%} of images that are least like any other (0.5: guessing)."
        )


def audit(
    distilled: DistilledSet,
    data: SceneData,
    known: Known | None = None,
    *,
    out: Path | None = None,
) -> Audit:
    """Audit `distilled` for traces of the training images; the test part of `data` gives the held-out images.

    Args:
        distilled: the set.
        data: the scenes that the set was made from; the test part must not have been used for it.
        known: what is known about how the set was made.
        out: folder for audit.json. This file names training images, so it is for the data owner alone.

    Raises:
        ConfigError: the set has a class that the data lack, or there are too few images to compare.
    """
    strange = sorted(set(distilled.classes) - set(data.train.classes))
    if strange:
        raise ConfigError(f"the set has a class {strange[0]!r} that the data have not: audit it against its own data")
    train = Pixels(data.train, distilled.size)
    leaked = train[torch.randperm(len(train), generator=generator(0, "audited training images"))[:_LEAKED]]
    known = known or Known()
    spaces = SPACES + (latent_spaces(known.prior, known.strength) if known.prior and data.test else ())
    attacked = fair_share(data.train.labels, _ATTACKED, 0)
    inside = seen(train.subset(attacked), data.train.labels[attacked], spaces)
    test = _held_out(data, distilled.size)
    held = _some(test) if test else leaked[:0]
    others = seen(test, test.labels, spaces) if test else None
    search = CopySearch(train)
    attacks, worst = _attacks(distilled, known.shadows, inside, others, data, attacked) if others else ((), None)
    found = _compare({"distilled": distilled.images, "held-out": held, "leaked": leaked}, train, inside, search)
    copied = {name: are_copies(some[PIXELS]).float().mean() if some else None for name, some in found.items()}
    own = found["distilled"]
    order = own[PIXELS].ratio.argsort(stable=True)
    replayed = _replay(distilled, known, data)
    result = Audit(
        images=tuple(_image(int(index), distilled, own, data.train) for index in order),
        threshold=COPY,
        held_out_flagged=None if copied["held-out"] is None else float(copied["held-out"]),
        held_out_count=len(held),
        train_count=len(train),
        leaked_flagged=float(copied["leaked"] or 0),
        readings=tuple(_reading(measure, found) for measure in MEASURES),
        nearness=aligned_nearness(
            distilled.images, held, search, (own[PIXELS].distance, found["held-out"][PIXELS].distance)
        )
        if len(held)
        else None,
        attacks=attacks,
        isolated=worst,
        null=null_of(distilled, data.train.classes, inside, others, test) if others and test else None,
        attribution=_attribution(distilled, known, train, data.train.labels),
        replay=replayed,
        overlap=known.overlap,
        replayable=known.replayable,
        unchecked=known.unchecked,
        foreign=known.foreign,
        untested=known.untested or (_FEW_SUSPECTS if known.draws and not replayed else ""),
        beside=known.beside,
        strays=known.strays,
    )
    if out is not None and processes().main:
        out.mkdir(parents=True, exist_ok=True)
        values = {"verdict": result.verdict, "copies": result.copies, "leaks": result.leaks, **asdict(result)}
        write_atomic(out / "audit.json", json.dumps(values, indent=1, ensure_ascii=False))
    return result


def _held_out(data: SceneData, size: int) -> Pixels | None:
    """Return the held-out images, a fair share of very many; None if there are none."""
    return Pixels(data.test, size, fair_share(data.test.labels, _ATTACKED, 0)) if data.test else None


def _attribution(distilled: DistilledSet, known: Known, train: Pixels, labels: Tensor) -> Attribution | None:
    return None if known.starts is None else attribute(distilled.images, known.starts, train, labels)


def _replay(distilled: DistilledSet, known: Known, data: SceneData) -> Replay | None:
    if known.draws is None:
        return None
    with progress("replay", 1) as advance:
        real = data.train.followed_by(data.test) if data.test else data.train
        found = replay(known.draws, distilled.images, Pixels(real, distilled.size), real.labels)
        advance(1)
    return found


def _some(images: Pixels) -> Tensor:
    """Return at most MAX_HELD_OUT of `images` [n, 3, s, s], the limit that `nearness` uses too."""
    chosen = torch.randperm(len(images), generator=generator(0, "audited held-out images"))[:MAX_HELD_OUT]
    return images[chosen.sort().values]


def _compare(
    groups: dict[str, Tensor], train: Pixels, inside: Seen, search: CopySearch
) -> dict[str, dict[str, Neighbours]]:
    """Return the neighbours of each group of images under each of MEASURES; an empty group has none.

    inside: all training images as the attacks see them, or some of them, which are then not used.
    """
    with progress("copy-detection embedding", 1) as advance:
        copyprint = learn_copyprint(train)
        advance(1)
    # All groups go in together, so that the representations of the training images are computed only once.
    images, sizes = torch.cat(list(groups.values())), [len(group) for group in groups.values()]
    features = inside.features if len(inside.labels) == len(train) else None
    compared = _searched(images, train, copyprint, features)
    compared[PIXELS] = search(images)
    found: dict[str, dict[str, Neighbours]] = {name: {} for name in groups}
    for measure in MEASURES:
        for name, part in zip(groups, compared[measure].split(sizes), strict=True):
            if len(part.nearest):
                found[name][measure] = part
    return found


def _searched(images: Tensor, train: Pixels, copyprint: Copyprint, features: Tensor | None) -> dict[str, Neighbours]:
    """Return the neighbours of `images` under all of MEASURES but PIXELS; training images are read block by block.

    features: the backbone's features of all training images, if they are known.
    """
    searches = {
        STRUCTURE: structure_search(images),
        FEATURES: embedding_search(images, backbone_features),
        COPYPRINT: embedding_search(images, copyprint),
    }
    with progress("audit", len(train)) as advance:
        for block in processes().own(blocks_of(len(train))):
            real = train[block]
            known = backbone_features(real) if features is None else features[block]
            for measure, seen_as in ((STRUCTURE, grey(real)), (FEATURES, known), (COPYPRINT, copyprint(real))):
                searches[measure].add(seen_as, block.start)
            advance(block.stop)
    return {measure: one.found() for measure, one in searches.items()}


def _attacks(
    distilled: DistilledSet, shadows: Sequence[Shadow], known: Seen, others: Seen, data: SceneData, attacked: Tensor
) -> tuple[tuple[Attack, ...], Attack | None]:
    """Return the results of the attacks on the set; `known` are training images, `others` held-out ones.

    attacked: int64 [n], which training images the known ones are. The second value is the result of the best attack on
    the most isolated images alone.
    """
    classes, count = data.train.classes, len(known.labels)
    found = scores(distilled, classes, known, others)
    if shadows:
        masks = [_mask(part, len(data.train))[attacked] for _, part in shadows]
        parts = [(scores(one, classes, known), mask) for (one, _), mask in zip(shadows, masks, strict=True)]
        found |= {SHADOW: shadow_scores(parts, found)}
    with progress("membership", len(found)) as advance:

        def judged(rank: int) -> Attack:
            name = list(found)[rank]
            made = attack(name, found[name][:count], found[name][count:])
            advance(rank + 1, name)
            return made

        made = processes().shared(range(len(found)), judged)
    best = best_of(made)
    if best is None:
        return (), None
    inside, outside = isolated(known, others)
    values = found[best.name]
    return tuple(made), attack(best.name, values[:count][inside], values[count:][outside])


def _mask(part: Tensor, count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[part] = True
    return mask


def _reading(measure: str, found: dict[str, dict[str, Neighbours]]) -> Reading:
    distances = {name: _rounded(some[measure].distance) if some else () for name, some in found.items()}
    ratios = {name: _rounded(some[measure].ratio) if some else () for name, some in found.items()}
    return Reading(
        measure,
        distances["distilled"],
        distances["held-out"],
        distances["leaked"],
        ratios["distilled"],
        ratios["held-out"],
    )


def _told_of_null(null: Null) -> str:
    return (
        f" The p-value compares the set with {len(null.drawn)} sets of held-out images, at {null.rates[0]:.0%} false "
        f"positives of the images that none of these sets has: the best attack finds {null.observed[0]:.1%} with the "
        f"set, and {null.mean[0]:.1%} on average with the others ({_p(null.p)}; p of at most {ALARM} is a leak)."
    )


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.0005 else "p < 0.001"


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values.tolist())


def _image(index: int, distilled: DistilledSet, found: dict[str, Neighbours], train: Scenes) -> ImageAudit:
    name = distilled.classes[int(distilled.labels[index])]
    rank = int((distilled.labels[:index] == distilled.labels[index]).sum())
    nearest = int(found[PIXELS].nearest[index])
    return ImageAudit(
        index=index,
        name=f"{name} {rank}",
        nearest_index=nearest,
        nearest=train.names[nearest],
        distances={measure: round(float(some.distance[index]), 4) for measure, some in found.items()},
        ratios={measure: round(float(some.ratio[index]), 4) for measure, some in found.items()},
        copy=bool(are_copies(found[PIXELS])[index]),
    )
