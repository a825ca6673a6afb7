import tempfile
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from geodistill.run import (
    forget_parts,
    join_parts,
    kept_parts,
    save_rows,
    save_tensors,
)


def test_parts_are_made_once_and_joined_in_order(tmp_path: Path) -> None:
    made: list[int] = []

    def make(part: slice) -> torch.Tensor:
        if part.start == 4 and len(made) == 2:
            raise KeyboardInterrupt
        made.append(part.start)
        return torch.arange(part.start, part.stop)

    parts = [slice(0, 2), slice(2, 4), slice(4, 5)]
    with pytest.raises(KeyboardInterrupt):
        kept_parts("work", parts, make, tmp_path)
    made.append(-1)
    assert kept_parts("work", parts, make, tmp_path).tolist() == [0, 1, 2, 3, 4]
    assert made == [0, 2, -1, 4]
    (tmp_path / "whole.safetensors").write_text("")
    forget_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.safetensors"]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.lists(st.integers(1, 3), max_size=3),
    st.sampled_from([torch.float16, torch.float32, torch.bfloat16, torch.uint8, torch.int64]),
)
def test_joined_parts_are_what_safetensors_reads(rows: list[int], rest: list[int], kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(rows))
    parts = [torch.randint(0, 100, (count, *rest), generator=generator).to(kind) for count in rows]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{rank}.safetensors" for rank in range(len(parts))]
        for part, path in zip(parts, paths, strict=True):
            save_tensors({"part": part}, path)
        join_parts(paths, "all", Path(folder) / "joined.safetensors")
        joined = load_file(Path(folder) / "joined.safetensors")
        assert list(joined) == ["all"]
        assert joined["all"].dtype == kind
        assert torch.equal(joined["all"], torch.cat(parts))


def test_joining_holds_one_part_at_a_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"{rank}.safetensors" for rank in range(30)]
    for path in paths:
        save_tensors({"part": torch.zeros(1, 1 << 20)}, path)
    tracemalloc.start()
    join_parts(paths, "all", tmp_path / "joined.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * (4 << 20)
    assert (tmp_path / "joined.safetensors").stat().st_size > 30 * (4 << 20)


def test_rows_are_saved_part_by_part(tmp_path: Path) -> None:
    whole = torch.rand(7, 3)
    save_rows(iter(whole.split(3)), "all", tmp_path / "rows.safetensors")
    assert torch.equal(load_file(tmp_path / "rows.safetensors")["all"], whole)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.safetensors"]
