"""Every error that geodistill raises on purpose.

    GeodistillError            base: catch this one
    ├── SceneError             the data: folders, images, classes, splits
    ├── ConfigError            a setting, or settings that contradict each other
    ├── PriorError             the base pipeline or its adapter
    ├── DescriberError         the model or server that writes descriptions
    ├── TrainingError          training went wrong: NaN, a teacher no better than chance
    ├── ExportError            a model that cannot be written in a format
    ├── PrivacyError           what was asked for would give training images away
    ├── RunError               the run folder: other settings, not writable, disk full
    └── DistilledSetError      a distilled set on disk that is not one

Each message says what is wrong, where, and what to do.
"""

import difflib
from collections.abc import Iterable


class GeodistillError(Exception):
    """Base of all errors raised on purpose; its message is meant for the user."""


class SceneError(GeodistillError):
    """The scene data cannot be used as it is."""


class ConfigError(GeodistillError):
    """A setting is out of range, unknown, or contradicts another."""


class PriorError(GeodistillError):
    """The base is not a usable text-to-image latent diffusion pipeline."""


class DescriberError(GeodistillError):
    """A vision-language model, or the server of one, cannot be used."""


class TrainingError(GeodistillError):
    """A model could not be trained to something useful."""


class ExportError(GeodistillError):
    """A classifier cannot be written in a format, or not so that it predicts the same."""


class PrivacyError(GeodistillError):
    """What was asked for cannot be made without giving training images away."""


class RunError(GeodistillError):
    """The run folder cannot be used or written."""


class DistilledSetError(GeodistillError):
    """A folder is not a usable distilled set."""


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return a question with at most `most` of the `known` names that are like `name`, "" if none is.

    >>> did_you_mean("hurding", ["herding", "random"])
    "did you mean 'herding'? "
    """
    near = difflib.get_close_matches(name, list(known), n=most)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""
