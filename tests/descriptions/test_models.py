import base64
import io
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_blip2, save_llava
from transformers import BertConfig

from geodistill.descriptions import make_describer
from geodistill.descriptions.models import ServerAnswerer, TransformersAnswerer
from geodistill.errors import DescriberError

IMAGE = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MODELS = {"data": [{"id": "tiny"}, {"id": "other"}]}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip2(tmp_path_factory.mktemp("blip2"))


class TestTransformersAnswerer:
    @pytest.mark.parametrize("family", ["llava", "blip2"])
    def test_with_and_without_an_image(self, family: str, request: pytest.FixtureRequest):
        answerer = TransformersAnswerer(str(request.getfixturevalue(family)))
        assert answerer("What is this ?", IMAGE) == "two white planes on tarmac"
        assert answerer("What do they share ?") == "two white planes on tarmac"

    def test_as_a_describer(self, llava: Path):
        found = make_describer(str(llava))(IMAGE[None].repeat(3, 1, 1, 1), "AirPort")
        assert found.text == "A satellite image of air port, two white planes on tarmac"
        assert len(found.exchanges) == 4

    def test_no_vision_model(self, tmp_path: Path):
        BertConfig().save_pretrained(tmp_path)
        with pytest.raises(
            DescriberError,
            match=re.escape(
                f"the describer {str(tmp_path)!r} is a 'bert' model, which takes no image: give an image-text-to-text "
                "model such as Salesforce/blip2-opt-2.7b, llava-hf/llava-1.5-7b-hf, Qwen/Qwen2.5-VL-3B-Instruct or "
                "HuggingFaceTB/SmolVLM-256M-Instruct"
            ),
        ):
            TransformersAnswerer(str(tmp_path))

    def test_no_model_at_all(self, tmp_path: Path):
        with pytest.raises(DescriberError, match=re.escape(f"cannot load the describer {str(tmp_path)!r}: ")):
            TransformersAnswerer(str(tmp_path))

    def test_weights_that_are_missing(self, llava: Path, tmp_path: Path):
        shutil.copytree(llava, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        answerer = TransformersAnswerer(str(tmp_path))
        with pytest.raises(DescriberError, match=re.escape(f"cannot load the describer {str(tmp_path)!r}: ")):
            answerer("What is this ?", IMAGE)

    def test_a_package_that_is_missing_is_named(self, llava: Path, monkeypatch: pytest.MonkeyPatch):
        def lacking(*_: object, **__: object) -> None:
            raise ImportError(
                "\nQwen2VLVideoProcessor requires the Torchvision library but it was not found in your ...\n"
            )

        monkeypatch.setattr("geodistill.descriptions.models.AutoProcessor.from_pretrained", lacking)
        with pytest.raises(DescriberError) as caught:
            TransformersAnswerer(str(llava))
        assert str(caught.value) == (
            f"the describer {str(llava)!r} needs a package that is not installed (Qwen2VLVideoProcessor requires the "
            "Torchvision library but it was not found in your ...): install it with pip"
        )

    def test_hub_out_of_reach(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(DescriberError) as caught:
            TransformersAnswerer("nobody/no-such-model")
        assert str(caught.value).startswith("there is no folder 'nobody/no-such-model' here, and the hub did not give ")
        assert str(caught.value).endswith(
            ": point --describe to a folder saved by transformers' save_pretrained, or to a server with openai:URL"
        )


class Server(ThreadingHTTPServer):
    """Answers the next request with the next of `replies`: JSON, raw bytes, an HTTP status, or seconds to wait."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[Any] = []
        self.asked: list[tuple[str, Any, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _reply(self, body: Any) -> None:
        self.server.asked.append((self.path, body, self.headers.get("Authorization")))
        reply = self.server.replies.pop(0)
        if isinstance(reply, float):
            time.sleep(reply)
        self.send_response(reply if isinstance(reply, int) else 200)
        self.end_headers()
        self.wfile.write(reply if isinstance(reply, bytes) else json.dumps(reply).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("geodistill.descriptions.models._WAITS", (0.0, 0.0))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def completion(text: str | None) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}]}


class TestServerAnswerer:
    def test_question_with_an_image(self, server: Server, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        server.replies = [MODELS, completion(" two planes ")]
        assert ServerAnswerer(server.url + "/")("What is this?", IMAGE) == "two planes"
        (listing, _, key), (path, body, same_key) = server.asked
        assert (listing, path, key, same_key) == (
            "/v1/models",
            "/v1/chat/completions",
            "Bearer secret",
            "Bearer secret",
        )
        assert (body["model"], body["temperature"]) == ("tiny", 0)
        picture, question = body["messages"][0]["content"]
        assert question == {"type": "text", "text": "What is this?"}
        sent = Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].split(",")[1])))
        assert np.array_equal(np.asarray(sent), IMAGE.permute(1, 2, 0).numpy())

    def test_as_a_describer(self, server: Server):
        server.replies = [MODELS, completion("two planes"), completion(None), completion("sand"), completion("grey")]
        found = make_describer(f"openai:{server.url}")(IMAGE[None].repeat(3, 1, 1, 1), "AirPort")
        assert found.text == "A satellite image of air port, grey"
        assert server.asked[-1][1]["messages"][0]["content"][0]["text"].count("\n- ") == 2

    @pytest.mark.parametrize("passing", [500, 429, b"not json", 503])
    def test_what_passes_is_tried_again(self, server: Server, passing: Any):
        server.replies = [MODELS, passing, passing, completion("sand")]
        assert ServerAnswerer(server.url)("What is this?") == "sand"

    def test_what_will_not_pass_is_not(self, server: Server):
        server.replies = [MODELS, 401]
        answerer = ServerAnswerer(server.url)
        with pytest.raises(DescriberError) as caught:
            answerer("What is this?")
        assert str(caught.value) == (
            f"the describer's server at {server.url} refuses (HTTP Error 401: Unauthorized, 401): it wants its key in "
            "the environment variable OPENAI_API_KEY"
        )

    def test_a_model_by_name(self, server: Server):
        two = {"data": [{"id": "text-only"}, {"id": "tiny"}]}
        server.replies = [two, completion("sand"), two]
        answerer = ServerAnswerer(f"{server.url}#tiny")
        assert answerer("What is this?") == "sand"
        assert server.asked[-1][0] == "/v1/chat/completions"
        assert server.asked[-1][1]["model"] == "tiny"
        with pytest.raises(DescriberError, match=r"/v1 has no model 'large': text-only, tiny$"):
            ServerAnswerer(f"{server.url}#large")

    def test_no_address_of_a_server(self):
        with pytest.raises(
            DescriberError, match=r"^the describer's server at http://127\.0\.0\.1:abc answered somethin"
        ):
            ServerAnswerer("http://127.0.0.1:abc")

    @pytest.mark.parametrize("sent", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
    def test_no_web_server(self, monkeypatch: pytest.MonkeyPatch, sent: bytes):
        monkeypatch.setattr("geodistill.descriptions.models._WAITS", ())
        with socket.create_server(("127.0.0.1", 0)) as there:

            def answer() -> None:
                caller, _ = there.accept()
                caller.recv(4096)
                caller.sendall(sent)
                caller.close()

            threading.Thread(target=answer, daemon=True).start()
            with pytest.raises(DescriberError, match="answered something that is not HTTP with JSON in it: "):
                ServerAnswerer(f"http://127.0.0.1:{there.getsockname()[1]}")

    @pytest.mark.parametrize(
        ("replies", "message"),
        [
            ([{"models": []}], "answered something that is not a list of models: \"{'models': []}\""),
            ([{"data": []}], "answered something that is not a list of models: \"{'data': []}\""),
            ([b"<html>"] * 3, "answered something that is not JSON: '<html>'"),
            ([MODELS, {"error": 1}], "answered something that is not a chat completion: \"{'error': 1}\""),
            ([MODELS, []], "answered something that is not a chat completion: '[]'"),
        ],
    )
    def test_garbage(self, server: Server, replies: list[Any], message: str):
        server.replies = replies
        with pytest.raises(DescriberError) as caught:
            ServerAnswerer(server.url)("What is this?")
        assert str(caught.value) == f"the describer's server at {server.url} {message}"

    def test_time_out(self, server: Server):
        server.replies = [MODELS, 0.5, 0.5, 0.5]
        answerer = ServerAnswerer(server.url, timeout=0.1)
        with pytest.raises(DescriberError) as caught:
            answerer("What is this?")
        assert str(caught.value) == (
            f"the describer's server at {server.url} gave no answer within 0.1 s, three times: look at its log; the "
            "same command goes on from here"
        )

    def test_nobody_there(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("geodistill.descriptions.models._WAITS", ())
        with pytest.raises(DescriberError, match=r"Connection refused>\): is it running, and is this its address\?$"):
            ServerAnswerer("http://127.0.0.1:9/v1")

    def test_no_address(self):
        with pytest.raises(
            DescriberError,
            match=r"^the describer's address 'localhost' is none: write openai:http://localhost:8000/v1$",
        ):
            make_describer("openai:localhost")
