"""Vision-language models as answerers: any image-text-to-text model of transformers, or one on a server."""

import base64
import http.client
import io
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from geodistill.devices import Precision, accelerator, dtype_for
from geodistill.errors import DescriberError

_MOST_TOKENS = 96
SERVER = "openai:"
TIMEOUT = 120.0
_WAITS = (1.0, 4.0)
# Text in transformers' error when a processor needs another package, as those of Qwen-VL need torchvision.
_LACKING = re.compile(r"not found in your|is not installed|No module named|pip install", re.IGNORECASE)


class TransformersAnswerer:
    """Any image-text-to-text model of transformers: BLIP-2, LLaVA, Qwen-VL, SmolVLM and similar models.

    Decoding is greedy. Weights are loaded at the first question, from safetensors only; no remote code.
    """

    def __init__(self, source: str, precision: Precision = "auto") -> None:
        """Load the config and processor of the model in folder `source` or with that hub name.

        Raises:
            DescriberError: there is none, it is no vision model, or it needs a package that is not installed.
            ConfigError: the device does not support that precision.
        """
        self.name, self._type = source, dtype_for(precision, accelerator())
        try:
            kind = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
        except (OSError, ValueError, KeyError) as error:
            raise DescriberError(_not_had(source, error)) from error
        if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise DescriberError(
                f"the describer {source!r} is a {kind!r} model, which takes no image: give an image-text-to-text model "
                "such as Salesforce/blip2-opt-2.7b, llava-hf/llava-1.5-7b-hf, Qwen/Qwen2.5-VL-3B-Instruct or "
                "HuggingFaceTB/SmolVLM-256M-Instruct"
            )
        # The processor is small, and a missing package should be reported now, not after an hour.
        self._processor = self._loaded(lambda: AutoProcessor.from_pretrained(self.name, trust_remote_code=False))

    @torch.inference_mode()
    def __call__(self, prompt: str, image: Tensor | None = None) -> str:
        """Return the model's answer; see `Answerer`."""
        inputs = self._inputs(prompt, None if image is None else _picture(image)).to(self._model.device)
        inputs = {name: _as_model(value, self._model.dtype) for name, value in inputs.items()}
        made = self._model.generate(**inputs, max_new_tokens=_MOST_TOKENS, do_sample=False)
        # Some models embed image and question first and return only the answer, without repeating the question.
        asked = inputs["input_ids"]
        repeated = made.shape[1] > asked.shape[1] and torch.equal(made[:, : asked.shape[1]], asked)
        new = made[0, asked.shape[1] :] if repeated else made[0]
        return str(self._processor.tokenizer.decode(new, skip_special_tokens=True)).strip()

    def _inputs(self, prompt: str, picture: Image.Image | None) -> Any:
        if self._processor.chat_template is None:
            # A model without a chat template requires an image with every question; grey stands for no image.
            shown = picture or Image.new("RGB", (64, 64), (128, 128, 128))
            return self._processor(images=shown, text=f"Question: {prompt} Answer:", return_tensors="pt")
        seen = [] if picture is None else [{"type": "image", "image": picture}]
        message = {"role": "user", "content": [*seen, {"type": "text", "text": prompt}]}
        return self._processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    @cached_property
    def _model(self) -> Any:
        def load() -> Any:
            return AutoModelForImageTextToText.from_pretrained(
                self.name, dtype=self._type, use_safetensors=True, trust_remote_code=False
            )

        return self._loaded(load).to(accelerator()).eval()

    def _loaded(self, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            if _LACKING.search(str(error)):
                reason = next(line.strip() for line in str(error).splitlines() if line.strip())
                raise DescriberError(
                    f"the describer {self.name!r} needs a package that is not installed ({reason}): install it with pip"
                ) from error
            raise DescriberError(_not_had(self.name, error)) from error


class ServerAnswerer:
    """A server with the OpenAI chat API, such as a local vLLM or Ollama; uses its first model unless one is named.

    An API key, if the server requires one, is read from the environment variable OPENAI_API_KEY.

    Written by hand: huggingface_hub's InferenceClient does not list a server's models and does not try again.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT) -> None:
        """Ask the server at `url`, such as http://localhost:8000/v1 or …/v1#MODEL, for its models.

        A request fails after `timeout` seconds without an answer.

        Raises:
            DescriberError: there is no server, it is of another kind, or it lacks that model.
        """
        url, _, asked = url.partition("#")
        if not url.startswith(("http://", "https://")):
            raise DescriberError(f"the describer's address {url!r} is none: write openai:http://localhost:8000/v1")
        self.url, self.timeout = url.rstrip("/"), timeout
        listing = self._request("models")
        try:
            models = [str(one["id"]) for one in listing["data"]]
            self.model = asked or models[0]
        except (KeyError, IndexError, TypeError) as error:
            raise DescriberError(_garbage(self.url, "a list of models", listing)) from error
        if self.model not in models:
            raise DescriberError(f"the describer's server at {self.url} has no model {asked!r}: {', '.join(models)}")
        self.name = f"{SERVER}{self.url}#{self.model}"

    def __call__(self, prompt: str, image: Tensor | None = None) -> str:
        """Return the model's answer; see `Answerer`."""
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": _data_url(_picture(image))}})
        question = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": _MOST_TOKENS,
            "temperature": 0,
            "seed": 0,
        }
        reply = self._request("chat/completions", question)
        try:
            return str(reply["choices"][0]["message"]["content"] or "").strip()
        except (KeyError, IndexError, TypeError) as error:
            raise DescriberError(_garbage(self.url, "a chat completion", reply)) from error

    def _request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the server's JSON answer; errors that may be temporary are tried three times."""
        for wait in (*_WAITS, None):
            try:
                return self._once(path, body)
            except (OSError, ValueError, http.client.HTTPException) as error:
                if wait is None or _will_not_pass(error):
                    raise DescriberError(self._failure(error)) from error
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as reply:
            return json.loads(reply.read())

    def _failure(self, error: Exception) -> str:
        if isinstance(error, json.JSONDecodeError):
            return _garbage(self.url, "JSON", error.doc)
        if isinstance(error, urllib.error.HTTPError):
            told = error.read()[:200].decode(errors="replace").strip()
            key = ": it wants its key in the environment variable OPENAI_API_KEY" if error.code in (401, 403) else ""
            return f"the describer's server at {self.url} refuses ({error}{f', {told}' if told else ''}){key}"
        if isinstance(error, ValueError | http.client.HTTPException):
            return _garbage(self.url, "HTTP with JSON in it", error)
        if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
            return (
                f"the describer's server at {self.url} gave no answer within {self.timeout:g} s, three times: "
                "look at its log; the same command goes on from here"
            )
        return (
            f"the describer's server at {self.url} cannot be asked ({error}): is it running, and is this its address?"
        )


def _will_not_pass(error: Exception) -> bool:
    if isinstance(error, http.client.InvalidURL):
        return True
    return isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429


def _garbage(url: str, wanted: str, reply: Any) -> str:
    return f"the describer's server at {url} answered something that is not {wanted}: {str(reply)[:80]!r}"


def _not_had(source: str, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "no reason given")
    if Path(source).is_dir():
        return f"cannot load the describer {source!r}: {reason}"
    return (
        f"there is no folder {source!r} here, and the hub did not give a model of that name ({reason}): "
        "point --describe to a folder saved by transformers' save_pretrained, or to a server with openai:URL"
    )


def _as_model(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
