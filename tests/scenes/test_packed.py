import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geodistill.scenes.files import Files
from geodistill.scenes.packed import Digests, Paths, Texts, joined, packed, packed_sources, taken
from geodistill.scenes.readers import Info
from geodistill.scenes.scenes import SceneFile, Scenes

# Any text that a path may be, bytes that are no text included.
names = st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from("\udce9\udcff"), max_size=8), max_size=20)
digests = st.lists(st.integers(0, 5).map(lambda k: hashlib.sha256(bytes([k])).hexdigest()), max_size=20)


@given(names | digests, st.data())
def test_packed_strings_are_the_same_strings(texts: list[str], data: st.DataObject) -> None:
    whole = packed(iter(texts))
    assert isinstance(whole, Digests) == all(len(text) == 64 for text in texts)
    assert (list(whole), len(whole)) == (texts, len(texts))
    assert whole == tuple(texts)
    assert whole + whole[:1] == (*texts, *texts[:1])
    chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=6) if texts else st.just([]))
    some = whole.take(torch.tensor(chosen, dtype=torch.int64))
    assert list(some) == [texts[k] for k in chosen]
    assert [whole[k] for k in chosen] == list(some)
    assert whole[1:-1] == tuple(texts[1:-1])
    assert whole.first_equal().tolist() == [texts.index(text) for text in texts]
    assert list(joined([whole, some])) == texts + list(some)


@given(names)
def test_texts_may_be_read_once_and_joined(texts: list[str]) -> None:
    assert list(Texts.join([Texts.of(texts[:3]), Texts.of(iter(texts[3:]))])) == texts


def test_many_texts() -> None:
    texts = [str(k) for k in range(10_000)]
    assert list(Texts.of(texts)) == texts


def test_what_differs_is_not_equal() -> None:
    one = packed(["a", "b"])
    assert one != packed(["a"])
    assert one != ("a", "c")
    assert one != ["a", "b"]  # as with tuples
    assert len({one, packed(["a", "b"])}) == 1
    with pytest.raises(IndexError):
        one[2]


def test_sources_are_packed_if_all_are_paths() -> None:
    paths = [Path("a/b.png"), Path("c.png")]
    array = np.zeros((2, 2, 3), np.uint8)
    assert list(packed_sources(paths)) == paths
    assert taken(packed_sources(paths), torch.tensor([1]))[0] == Path("c.png")
    assert isinstance(packed_sources(paths), Paths)
    assert packed_sources([array, paths[0]]) == (array, paths[0])
    assert taken(packed_sources([array, paths[0]]), torch.tensor([1])) == (paths[0],)


def test_files_are_what_they_were() -> None:
    info, other = Info(8, 8, "uint8", ("red", "green", "blue")), Info(8, 9, "uint8", ("red", "green", "blue"))
    files = [
        SceneFile(Path(f"a/{k}.png"), k % 3, f"a/{k}.png", hashlib.sha256(bytes([k % 250])).hexdigest(), info, k / 9000)
        for k in range(5000)
    ]
    files[7] = SceneFile(Path("b/\udce9.png"), 1, "b/7.png", "", other, masked=False)
    kept = Files.of(iter(files))
    assert list(kept) == files
    assert kept[4990:] == tuple(files[4990:])
    assert kept.labels.tolist() == [file.label for file in files]
    assert list(kept.paths) == [file.path for file in files]
    assert list(kept.take(torch.tensor([7, 0]))) == [files[7], files[0]]
    assert kept[0].info is kept[1].info
    assert list(Files.of([])) == []


def test_a_scene_takes_two_hundred_bytes() -> None:
    count = 20_000
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Texts.of(f"{folder}/Residential/Residential_{k}.jpg" for k in range(count)))
        keys = Digests.of(hashlib.sha256(str(k).encode()).hexdigest() for k in range(count))
        scenes = Scenes(paths, [0] * count, ("a", "b"), keys, Texts.of(f"Residential_{k}.jpg" for k in range(count)))
    parts = (paths._texts, scenes.names)
    size = sum(sys.getsizeof(one._buffer) + one._starts.nbytes + one._stops.nbytes for one in parts)
    assert size + scenes.keys._values.nbytes + scenes.labels.nbytes < 200 * count
    # Another selection shares the text.
    assert scenes.subset(range(5)).names._buffer is scenes.names._buffer
