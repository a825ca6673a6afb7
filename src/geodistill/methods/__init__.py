"""Ways to turn scenes into a distilled set: DPD and its rivals, one file each, all with the same `make`."""

import difflib
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from geodistill.errors import ConfigError
from geodistill.provenance import Made, Method

if TYPE_CHECKING:
    from geodistill.distilled import DistilledSet
    from geodistill.stages.context import Context

_ALL = (
    Method("random", "real images drawn at random", True, "random"),
    Method("herding", "real images whose mean features follow the class's mean", True, "herding"),
    Method("kcenter", "real images that leave none of the class far from them", True, "kcenter"),
    Method("kmeans", "the real image nearest each k-means centre of the class", True, "kmeans"),
    Method("reconstruction", "the k-means images through the prior's autoencoder and back", False, "reconstruction"),
    Method("template", "the prior under class prompts, fine-tuned with the diffusion loss alone", False, "template"),
    Method("d4m", "k-means centroids in latent space, noised and denoised by the prior as it is", False, "d4m"),
    Method("minimax", "the prior fine-tuned for representativeness and diversity", False, "minimax"),
    Method("mgd3", "the prior as it is, guided towards k-means modes in latent space", False, "mgd3"),
    Method("dm", "pixels optimised until their mean features match the class's", False, "dm"),
    Method(
        "dpd", "prototypes, descriptions, consistency loss, selection, refinement: this project's recipe", False, "dpd"
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def check_method(name: str) -> None:
    """Raise ConfigError, with the nearest known name, unless `name` is a method."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown method {name!r}: {hint}known: {', '.join(METHODS)}")


def make_distilled(name: str, context: "Context") -> "Made[DistilledSet]":
    """Return the set that method `name` makes of the context's scenes, in its run.

    Raises:
        ConfigError: there is no such method.
        GeodistillError: what the method itself finds wrong, such as a class with fewer than `config.ipc` images.
    """
    check_method(name)
    from geodistill.stages.checks import check_counts

    check_counts(context.scenes, context.config.ipc, context.config.privacy)
    method = METHODS[name]
    # Its module is loaded only now: naming the methods takes no torch.
    made: Made[DistilledSet] = import_module(f"{__name__}.{method.home}").make(replace(context, method=method))
    return made
