import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from geodistill.errors import TrainingError
from geodistill.prior import training
from geodistill.prior.base import Prior, load_prior
from geodistill.prior.finetune import add_adapter
from geodistill.prior.training import (
    TrainingData,
    TrainingPlan,
    _laid_out_like,
    forget_checkpoint,
    prompt_table,
    train_denoiser,
)


def _data(prior: Prior) -> TrainingData:
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(6, 2, 4, 8, 8, generator=g).half()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return TrainingData(latents, labels, labels[:, None] + 1, prior.embed(["", "beach", "river", "forest"]))


def _plan(**changes: Any) -> TrainingPlan:
    plan: dict[str, Any] = {"seed": 0, "steps": 6, "batch": 4, "lr": 1e-3, "warmup": 2, "gamma": 5.0, "ema": 0.9}
    return TrainingPlan(**{**plan, "drop_prompt": 0.1, "checkpoint_every": 2, **changes})


def _trained(
    folder: Path, sd_folder: Path, plan: TrainingPlan, stop_at: int | None = None, *, adapter: bool = False
) -> dict[str, torch.Tensor]:
    prior = load_prior(str(sd_folder))
    if adapter:
        add_adapter(prior, rank=2, seed=0)
    else:
        prior.unet.requires_grad_(True).to(memory_format=torch.channels_last)
    folder.mkdir(exist_ok=True)
    draw = TrainingData.batch

    def stopping(*args: Any) -> tuple[torch.Tensor, ...]:
        if args[-1] == stop_at:
            raise RuntimeError("killed")
        return draw(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingData, "batch", stopping)
        train_denoiser(prior.unet, prior.scheduler, _data(prior), plan, folder, "base")
    return {name: value.detach().clone() for name, value in prior.unet.state_dict().items()}


@pytest.mark.parametrize("adapter", [False, True])
def test_killed_twice_ends_with_the_same_weights(tmp_path: Path, sd_folder: Path, adapter: bool) -> None:
    expected = _trained(tmp_path / "whole", sd_folder, _plan(), adapter=adapter)
    for moment in (3, 5):
        with pytest.raises(RuntimeError, match="killed"):
            _trained(tmp_path / "killed", sd_folder, _plan(), stop_at=moment, adapter=adapter)
    # Two steps were kept, then four: the last call takes two more.
    resumed = _trained(tmp_path / "killed", sd_folder, _plan(), adapter=adapter)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    start = load_prior(str(sd_folder)).unet.state_dict()
    before = {name: start.get(name.replace(".base_layer", "")) for name in expected}
    # Frozen weights are in the computation type afterwards.
    moved = [
        name
        for name, value in before.items()
        if value is None or not torch.equal(expected[name], value.to(expected[name].dtype))
    ]
    assert all("lora" in name for name in moved) == adapter
    losses = [(tmp_path / run / "losses.json").read_text() for run in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_what_the_optimiser_remembers_lies_where_the_weights_do() -> None:
    weights = torch.empty(2, 3, 4, 4, device="meta").to(memory_format=torch.channels_last)
    assert _laid_out_like(weights, torch.tensor(7.0)).device.type == "meta"  # the number of steps
    moments = _laid_out_like(weights, torch.zeros(2, 3, 4, 4))
    assert (moments.device, moments.stride()) == (weights.device, weights.stride())


def test_killed_before_the_weights_are_saved_trains_no_step_again(tmp_path: Path, sd_folder: Path) -> None:
    expected = _trained(tmp_path, sd_folder, _plan())
    again = _trained(tmp_path, sd_folder, _plan(), stop_at=5)  # the last step would stop it
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    forget_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["losses.json"]


def test_an_adapter_learns_the_same_from_weights_that_are_cast_at_every_step(
    tmp_path: Path, sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _trained(tmp_path / "once", sd_folder, _plan(dtype=torch.bfloat16), adapter=True)
    monkeypatch.setattr(training, "_settle", lambda *_: None)
    monkeypatch.setattr(training, "disable_input_dtype_casting", nullcontext)
    cast = _trained(tmp_path / "each", sd_folder, _plan(dtype=torch.bfloat16), adapter=True)
    adapter = [name for name in expected if "lora" in name]
    assert adapter
    assert all(torch.equal(expected[name], cast[name]) for name in adapter)
    frozen = {expected[name].dtype for name in expected if name.endswith("base_layer.weight")}
    assert frozen == {torch.bfloat16}


def test_training_lowers_the_loss(tmp_path: Path, sd_folder: Path) -> None:
    prior = load_prior(str(sd_folder))
    prior.unet.requires_grad_(True)
    facts = train_denoiser(prior.unet, prior.scheduler, _data(prior), _plan(steps=60, lr=5e-3), tmp_path, "base")
    assert facts["last_loss"] < 0.95 * facts["first_loss"]


def test_consistency_changes_what_is_learned(tmp_path: Path, sd_folder: Path) -> None:
    plain = _trained(tmp_path / "a", sd_folder, _plan())
    judged = _trained(tmp_path / "b", sd_folder, _plan(teacher=lambda z: z.mean((2, 3)), consistency=1.0))
    assert any(not torch.equal(plain[name], judged[name]) for name in plain)


def test_nan_stops_with_advice(tmp_path: Path, sd_folder: Path) -> None:
    prior = load_prior(str(sd_folder))
    prior.unet.requires_grad_(True)
    data = _data(prior)
    data.latents[:] = float("nan")
    with pytest.raises(TrainingError) as caught:
        train_denoiser(prior.unet, prior.scheduler, data, _plan(), tmp_path, "adapter")
    assert str(caught.value) == (
        "the loss of 'adapter' became nan at step 0: lower its lr (for the adapter --set finetune.lr=…, "
        "for the compact base --set compact.lr=…) and start in a new --out"
    )


def test_precision_is_what_the_plan_says(tmp_path: Path, sd_folder: Path) -> None:
    weights = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
        weights[name] = _trained(tmp_path / name, sd_folder, _plan(dtype=dtype))
    moved = {
        name: sum(float((weights["f32"][key] - own[key]).abs().sum()) for key in own) for name, own in weights.items()
    }
    # f16 keeps three more bits of a number than bf16.
    assert 0 == moved["f32"] < moved["f16"] < 0.5 * moved["bf16"]


def test_killed_in_f16_ends_with_the_same_weights(tmp_path: Path, sd_folder: Path) -> None:
    plan = _plan(dtype=torch.float16)
    expected = _trained(tmp_path / "whole", sd_folder, plan)
    with pytest.raises(RuntimeError, match="killed"):
        _trained(tmp_path / "killed", sd_folder, plan, stop_at=5)
    resumed = _trained(tmp_path / "killed", sd_folder, plan)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def _short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let the U-Net run out of memory unless it keeps few activations and gets at most `most` latents; list these."""
    forward, seen = UNet2DConditionModel.forward, list[int]()

    def limited(self: Any, noisy: torch.Tensor, *args: Any, **named: Any) -> Any:
        if len(noisy) > most or not self.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("device full. Tried to allocate 2 GiB")
        seen.append(len(noisy))
        return forward(self, noisy, *args, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", limited)
    return seen


def test_out_of_memory_is_answered_by_the_same_step_in_parts(
    tmp_path: Path, sd_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judged = {"teacher": lambda z: z.mean((2, 3)), "consistency": 1.0, "batch": 5}
    expected = _trained(tmp_path / "whole", sd_folder, _plan(**judged))
    with monkeypatch.context() as patch:
        seen = _short_of_memory(patch, most=2)
        parts = _trained(tmp_path / "parts", sd_folder, _plan(**judged))
    assert seen == [2, 2, 1] * 6
    start = load_prior(str(sd_folder)).unet.state_dict()
    moved = sum(float((start[name] - expected[name]).abs().sum()) for name in expected)
    apart = sum(float((parts[name] - expected[name]).abs().sum()) for name in expected)
    # bf16 rounds sums over other numbers of latents in another way.
    assert apart < 0.05 * moved
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory at step 0 of 'base': going on with {remedy}"
        for remedy in ("gradient checkpointing", "3 latents at a time", "2 latents at a time")
    ]
    losses = [json.loads((tmp_path / run / "losses.json").read_text()) for run in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_out_of_memory_with_no_remedy_left(tmp_path: Path, sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _short_of_memory(monkeypatch, most=0)
    with pytest.raises(TrainingError) as caught:
        _trained(tmp_path, sd_folder, _plan())
    assert str(caught.value) == (
        "out of memory at step 0 of 'base' (device full), and no less can be asked for: use a smaller --size or base, "
        "or free the device"
    )


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**40))
def test_every_scene_comes_up_once_an_epoch(count: int, batch: int, seed: int) -> None:
    steps = -(-2 * count // batch)
    row = torch.cat([training._batch_indices(seed, step, batch, count) for step in range(steps)])
    assert sorted(row[:count].tolist()) == list(range(count))
    assert sorted(row[count : 2 * count].tolist()) == list(range(count))


def test_prompt_table_has_the_empty_prompt_first() -> None:
    table, rows = prompt_table([["b", "a"], ["a", ""]])
    assert table == ["", "a", "b"]
    assert rows.tolist() == [[2, 1], [1, 0]]


def test_a_process_without_a_part_of_a_step_takes_the_step_in_f16() -> None:
    model = torch.nn.Linear(2, 2)
    state = training._State(model, training.Optimisation(steps=2, lr=1e-3, warmup=0, ema=0, dtype=torch.float16), {})
    loss = training._backward(state, iter(()), 0, "idle")
    for p in model.parameters():
        p.grad = torch.ones_like(p)  # the sum over the other processes
    before = model.weight.detach().clone()
    state.update(loss)
    assert not torch.equal(model.weight, before)
