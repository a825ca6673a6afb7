"""A classifier from a distilled set, or from any labelled images, as a folder that can be used, exported and shared."""

from dataclasses import dataclass
from pathlib import Path

import torch

from geodistill.distilled import MANIFEST, DistilledSet, set_folder, told_licence
from geodistill.errors import ConfigError
from geodistill.evaluation.classifier import About, Classifier
from geodistill.evaluation.workers import Job, train_side_by_side
from geodistill.networks import PRETRAINED, check_network, check_side, has_imagenet_weights
from geodistill.scenes.folder import EVERY, open_scenes
from geodistill.scenes.reading import PLAIN, Reading

# Side in pixels of images that do not have one of their own, as a distilled set has.
SIZE = 64


@dataclass(frozen=True)
class Labelled:
    """Images to train or to calibrate on.

    images: uint8 [n, 3, s, s]. labels: int64 [n]. classes: their names. reading: how files became images; for a
    distilled set, the files of its source. what: the images in words. licence: of the source, "" if it is not stated.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    reading: Reading
    what: str
    licence: str = ""


def train(
    subject: Path | str,
    network: str = PRETRAINED,
    *,
    out: Path | str,
    size: int | None = None,
    bands: str = "rgb",
    scale: str = "auto",
    seed: int = 0,
    steps: int | None = None,
    licence: str = "",
) -> Classifier:
    """Train `network` on the images of `subject`, write it to the folder `out`, and return it.

    The protocol is finetune for a network with ImageNet weights and scratch for all others. The result is the
    classifier whose accuracy `evaluate` reports under this protocol and seed.

    Args:
        subject: a run, a distilled set, or labelled images as `open_scenes` reads them. If these have splits of their
            own, the training part alone is used, else all of them.
        network: a name that `networks.check_network` knows.
        out: a new or empty folder; `evaluation.classifier` describes what it will hold.
        size: side in pixels of the images; by default a distilled set's own, and 64 for other images.
        bands, scale: how files of other images become RGB, as for `open_scenes`.
        seed: of the initial weights, the order of the images and their augmentation.
        steps: replaces the protocol's number of training steps.
        licence: of the training data, for the model card; by default what the set's data card states.

    Raises:
        ConfigError: an unknown network, images below 32 px, or `out` is not empty.
        SceneError, DistilledSetError: `subject` is no labelled images, or has one class only.
        TrainingError: the loss is not finite.
        RunError: `out` cannot be written.

    >>> from tempfile import mkdtemp
    >>> from geodistill.scenes import write_scenes
    >>> data, model = Path(mkdtemp()), Path(mkdtemp())
    >>> _ = write_scenes(data, train_per_class=2, test_per_class=1, size=32)
    >>> trained = train(data, "convnet3", out=model, size=32, steps=2)
    >>> trained.about.protocol, trained.about.trained_on, trained.about.classes[:2]
    ('scratch', '20 labelled images', ('Beach', 'DenseResidential'))
    >>> sorted(path.name for path in model.iterdir())
    ['README.md', 'class_map.txt', 'model.safetensors', 'preprocessing.json']
    """
    check_network(network)
    folder = _new_folder(Path(out))
    found = labelled_images(Path(subject), size=size, bands=bands, scale=scale)
    check_side(found.images.shape[-1])
    protocol = "finetune" if has_imagenet_weights(network) else "scratch"
    about = About(
        *(network, protocol, found.classes, int(found.images.shape[-1]), seed),
        reading=found.reading,
        trained_on=found.what,
        licence=licence or found.licence,
        channels=found.images.shape[1],
    )
    arrays = (found.images.numpy(), found.labels.numpy())
    # The job predicts images too; one is enough, as only its network is wanted.
    job = Job(protocol, network, *arrays, arrays[0][:1], len(found.classes), seed, steps, (folder, about))
    list(train_side_by_side([job]))
    return Classifier.load(folder)


def labelled_images(
    subject: Path,
    *,
    size: int | None = None,
    bands: str = "rgb",
    scale: str = "auto",
    reading: Reading | None = None,
) -> Labelled:
    """Return the images of a run's set, of a distilled set, or of labelled images, as `train` describes them.

    `reading` takes the place of `bands` and `scale`. Raises the errors of `DistilledSet.load` and `open_scenes`.
    """
    folder = set_folder(subject)
    if not (folder / MANIFEST).is_file():
        scenes = open_scenes(subject, bands=bands, scale=scale, split=EVERY, reading=reading).train
        what = f"{len(scenes):,} labelled images"
        return Labelled(scenes.pixels(size=size or SIZE), scenes.labels, scenes.classes, scenes.reading, what)
    found = DistilledSet.load(folder, size=size)
    terms = (found.about.get("base") or {}).get("terms", "")
    licence = "; ".join(filter(None, (told_licence(folder), f"base: {terms}" if terms else "")))
    method = found.about.get("method", "unknown")
    what = f"{len(found):,} {found.kind} images, a set that geodistill made by method {method}"
    return Labelled(found.images, found.labels, found.classes, found.reading or PLAIN, what, licence)


def _new_folder(out: Path) -> Path:
    blocked = next((one for one in out.parents if one.is_file()), None)
    if blocked:
        raise ConfigError(f"{out} cannot be a folder, {blocked} is a file: choose a new folder for the model")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: choose a new folder for the model")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: choose a new folder for the model")
    return out
