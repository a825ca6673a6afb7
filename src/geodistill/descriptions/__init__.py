"""Descriptions: the text prompts with which the images of a prototype are sampled.

A describer looks at the images of one cluster and returns a prompt that starts with the class prompt.
"""

from pathlib import Path

from geodistill.descriptions.captions import (
    FAILED,
    CaptionDescriber,
    Conversations,
    Describer,
    Description,
    Exchange,
    shortened,
)
from geodistill.descriptions.measured import VOCABULARY, MeasuredDescriber, TemplateDescriber
from geodistill.descriptions.models import SERVER, ServerAnswerer, TransformersAnswerer
from geodistill.descriptions.prompts import class_prompt, readable
from geodistill.devices import Precision
from geodistill.errors import ConfigError
from geodistill.scenes.reading import PLAIN, Reading

__all__ = [
    "FAILED",
    "VOCABULARY",
    "Conversations",
    "Describer",
    "Description",
    "Exchange",
    "MeasuredDescriber",
    "TemplateDescriber",
    "class_prompt",
    "make_describer",
    "readable",
    "shortened",
]


def make_describer(name: str, precision: Precision = "auto", reading: Reading = PLAIN) -> Describer:
    """Return the describer `name`: 'measured', 'template', 'openai:URL#MODEL', or a model's folder or hub name.

    `precision` applies to models of transformers. `reading` says what the bands of the scenes are.

    Raises:
        ConfigError: there is no such name.
        DescriberError: the model or the server cannot be used.
    """
    if name == "measured":
        return MeasuredDescriber(reading)
    if name == "template":
        return TemplateDescriber()
    if name.startswith(SERVER):
        return CaptionDescriber(ServerAnswerer(name.removeprefix(SERVER)))
    if name.count("/") == 1 or Path(name).is_dir():
        return CaptionDescriber(TransformersAnswerer(name, precision))
    raise ConfigError(
        f"unknown describer {name!r}: choose measured, template, openai:URL, a model's folder, or a hub name such as "
        "HuggingFaceTB/SmolVLM-256M-Instruct"
    )
