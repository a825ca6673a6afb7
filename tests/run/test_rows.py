import re
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geodistill.run import Rows, column, in_parts, join_parts, save_tensors, subset

KINDS = [torch.float16, torch.float32, torch.float64, torch.uint8, torch.int64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@given(st.data(), st.integers(1, 6), st.integers(1, 3), st.sampled_from(KINDS))
def test_rows_are_those_of_the_tensor(
    folder: Path, data: st.DataObject, count: int, views: int, kind: torch.dtype
) -> None:
    whole = torch.randint(0, 100, (count, views, 2, 3), generator=torch.Generator().manual_seed(count)).to(kind)
    # A second tensor before it: the numbers do not begin at the end of the header.
    save_tensors({"first": torch.zeros(5), "second": whole}, folder / "kept.safetensors")
    kept = Rows(folder / "kept.safetensors", "second")
    assert (len(kept), kept.shape) == (count, whole.shape)
    chosen = torch.tensor(data.draw(st.lists(st.integers(-count, count - 1), max_size=5)), dtype=torch.int64)
    view = torch.tensor(data.draw(st.lists(st.integers(0, views - 1), min_size=len(chosen), max_size=len(chosen))))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    start, stop = data.draw(st.integers(0, count)), data.draw(st.integers(0, count))
    keys = (chosen, (chosen, view.long()), mask, (mask, 0), slice(start, stop), (slice(start, stop), views - 1), -1)
    for key in keys:
        found = kept[key]
        assert found.dtype == kind
        assert torch.equal(found, whole[key])
    for one in range(views):
        for of in (kept, whole):
            assert column(of, one).shape == whole[:, one].shape
            assert torch.equal(column(of, one)[chosen], whole[chosen, one])
            assert torch.equal(column(of, one)[start:stop, 0], whole[start:stop, one, 0])
            own = column(subset(of, chosen), one)
            assert own.shape == whole[chosen, one].shape
            assert torch.equal(own[:], whole[chosen, one])
            assert torch.equal(subset(own, torch.arange(len(own)).flip(0))[:], whole[chosen, one].flip(0))


@given(st.integers(1, 7), st.integers(1, 4))
def test_parts_cover_the_rows_in_order(folder: Path, count: int, size: int) -> None:
    whole = torch.arange(count * 2).view(count, 2)
    save_tensors({"all": whole}, folder / "all.safetensors")
    for stored in (whole, Rows(folder / "all.safetensors", "all")):
        parts = list(in_parts(stored, size))
        assert torch.equal(torch.cat(parts), whole)
        assert all(len(part) == size for part in parts[:-1])


def test_no_rows_at_all(tmp_path: Path) -> None:
    save_tensors({"none": torch.zeros(0, 4)}, tmp_path / "none.safetensors")
    kept = Rows(tmp_path / "none.safetensors", "none")
    assert len(kept) == 0
    assert kept[:].shape == (0, 4)
    assert list(in_parts(kept)) == []


def test_joined_parts_are_read_too(tmp_path: Path) -> None:
    parts = [torch.rand(count, 3) for count in (2, 1, 4)]
    paths = [tmp_path / f"{rank}.safetensors" for rank in range(len(parts))]
    for part, path in zip(parts, paths, strict=True):
        save_tensors({"part": part}, path)
    join_parts(paths, "all", tmp_path / "joined.safetensors")
    assert torch.equal(Rows(tmp_path / "joined.safetensors", "all")[:], torch.cat(parts))


def test_a_type_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    save_tensors({"kept": torch.zeros(2, dtype=torch.bfloat16)}, path)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: kept has type BF16, which cannot be read row by"):
        Rows(path, "kept")


def test_many_rows_are_gathered_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.arange(20 * 2 * 3).view(20, 2, 3)
    save_tensors({"kept": whole}, tmp_path / "kept.safetensors")
    kept, chosen, view = Rows(tmp_path / "kept.safetensors", "kept"), torch.arange(19, 2, -2), torch.arange(9) % 2
    monkeypatch.setattr("geodistill.run.rows._MAPPED", 4)
    read: list[int] = []
    once = kept._read
    monkeypatch.setattr(kept, "_read", lambda key: (read.append(len(key[0])), once(key))[1])
    assert torch.equal(kept[chosen], whole[chosen])
    assert read == [4, 4, 1]
    assert torch.equal(kept[chosen, view], whole[chosen, view])
    assert torch.equal(kept[chosen, 1, :2], whole[chosen, 1, :2])
    assert torch.equal(kept[whole[:, 0, 0] > 50], whole[whole[:, 0, 0] > 50])


def test_reading_all_rows_keeps_none_of_them(tmp_path: Path) -> None:
    save_tensors({"kept": torch.ones(64, 2**18)}, tmp_path / "kept.safetensors")  # 64 MiB
    kept, process = Rows(tmp_path / "kept.safetensors", "kept"), psutil.Process()
    float(kept[0].sum())
    before = process.memory_info().rss
    total = sum(float(part.sum()) for part in in_parts(kept, 1))
    assert total == 64 * 2**18
    assert process.memory_info().rss - before < 16 * 2**20
