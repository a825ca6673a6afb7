import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from geodistill.descriptions import class_prompt
from geodistill.descriptions.measured import (
    COVERS,
    NAMES,
    VOCABULARY,
    MeasuredDescriber,
    TemplateDescriber,
    measure,
)

SOUTH, EAST = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
MEADOW, WATER, SAND = (50, 85, 45), (30, 60, 110), (205, 185, 150)


def describe(images: Tensor, name: str) -> str:
    return MeasuredDescriber()(images, name).text


def plain(rgb: tuple[int, int, int]) -> Tensor:
    return torch.tensor(rgb, dtype=torch.uint8)[None, :, None, None].expand(1, 3, 64, 64).contiguous()


def drawn(mask: Tensor, inside: tuple[int, int, int], outside: tuple[int, int, int]) -> Tensor:
    return torch.where(mask, plain(inside), plain(outside))


def stripes(across: Tensor) -> Tensor:
    return drawn((across // 8 % 2).bool(), MEADOW, SAND)


class TestMeasuredSentences:
    @pytest.mark.parametrize(
        ("image", "sentence"),
        [
            (plain(WATER), "nearly all water, dark vivid blue, smooth texture, no single direction"),
            (plain(MEADOW), "nearly all vegetation, dark vivid green, smooth texture, no single direction"),
            (plain(SAND), "nearly all bare ground, bright vivid tan, smooth texture, no single direction"),
            (plain((255, 255, 255)), "mixed ground, white, smooth texture, no single direction"),
            (
                drawn((EAST - 32).abs() < 6, WATER, MEADOW),
                "mostly vegetation with a little water, dark vivid green and blue, smooth texture, "
                "lines running north-south",
            ),
            (
                drawn(SOUTH < 32, WATER, MEADOW),
                "partly vegetation and partly water, dark vivid green and blue, smooth texture, "
                "lines running east-west",
            ),
            (
                drawn((EAST // 2 + SOUTH // 2) % 2 == 1, (210, 210, 210), (90, 90, 90)),
                "nearly all built-up land, bright grey and white, strong fine texture, no single direction",
            ),
        ],
        ids=["water", "meadow", "sand", "snow", "river", "shore", "roofs"],
    )
    def test_exact(self, image: Tensor, sentence: str):
        assert describe(image, "SeaLake") == f"A satellite image of sea lake, {sentence}"

    @pytest.mark.parametrize(
        ("across", "direction"),
        [
            (EAST, "north-south"),
            (SOUTH, "east-west"),
            (EAST + SOUTH, "northeast-southwest"),
            (EAST - SOUTH, "northwest-southeast"),
        ],
    )
    def test_direction(self, across: Tensor, direction: str):
        assert describe(stripes(across), "X").endswith(f" coarse texture, lines running {direction}")

    def test_crossing_directions_cancel_over_a_cluster(self):
        assert describe(torch.cat([stripes(EAST), stripes(SOUTH)]), "X").endswith(", no single direction")

    def test_a_cluster_is_averaged(self):
        both = describe(torch.cat([plain(WATER), plain(MEADOW), plain(MEADOW)]), "X")
        assert both == (
            "A satellite image of x, mostly vegetation and partly water, "
            "dark vivid green and blue, smooth texture, no single direction"
        )

    def test_order_of_images_does_not_matter(self):
        images = torch.cat([plain(WATER), stripes(EAST), plain(SAND)])
        assert describe(images, "X") == describe(images.flip(0), "X")

    @pytest.mark.parametrize("size", [32, 128, 256])
    def test_size_of_images_does_not_matter(self, size: int):
        mask = (EAST - 32).abs() < 6
        image = drawn(mask, WATER, MEADOW)
        resized = F.interpolate(image.float(), (size, size), mode="nearest").to(torch.uint8)
        assert describe(resized, "River") == describe(image, "River")

    def test_each_is_one_by_one(self):
        images = torch.cat([plain(WATER), stripes(EAST), plain(SAND)])
        names = ["SeaLake", "Farmland", "Desert"]
        expected = [describe(image[None], name) for image, name in zip(images, names, strict=True)]
        assert MeasuredDescriber().each(images, names) == expected

    @settings(max_examples=30)
    @given(st.integers(0, 100_000), st.sampled_from([1, 2, 4, 16, 64]))
    def test_short_and_within_the_vocabulary(self, seed: int, grain: int):
        noise = torch.Generator().manual_seed(seed)
        coarse = torch.randint(0, 256, (3, 3, grain, grain), generator=noise, dtype=torch.uint8)
        for prompt in MeasuredDescriber().each(
            coarse.repeat_interleave(64 // grain, 2).repeat_interleave(64 // grain, 3), "XXX"
        ):
            words = prompt.replace(",", "").split()
            assert set(words) - {"x"} <= set(VOCABULARY)
            assert len(words) <= 4 + 1 + 23

    def test_fast_enough_to_caption_a_whole_data_set(self):
        images = torch.randint(0, 256, (300, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        started = time.perf_counter()
        assert len(MeasuredDescriber().each(images, ["Beach"] * 300)) == 300
        assert time.perf_counter() - started < 3  # 0.35 s on one core


class TestMeasure:
    def test_plain_image(self):
        row = measure(plain((51, 102, 51)))[0]
        assert row[0].item() == pytest.approx(0.2 + 0.587 * 0.2, abs=1e-6)
        assert row[1].item() == pytest.approx(0.2, abs=1e-6)
        assert row[2:6].abs().max().item() < 1e-6
        assert row[6:10].tolist() == [1, 0, 0, 0]
        assert row[10:].sum().item() == 1
        assert row[10 + NAMES.index("green")].item() == 1

    def test_edges_of_a_ramp(self):
        ramp = (EAST * 2).to(torch.uint8).expand(1, 3, 64, 64)
        # Central differences of 2 grey levels a pixel inside, half of it in the first and last column.
        assert measure(ramp)[0, 2].item() == pytest.approx(2 / 255 * 63 / 64, abs=1e-6)
        assert measure(ramp)[0, 4].item() > 0.8

    @pytest.mark.parametrize(
        ("rgb", "name"),
        [
            ((0, 0, 0), "black"),
            ((128, 128, 128), "grey"),
            ((255, 255, 255), "white"),
            ((200, 30, 30), "red"),
            ((30, 60, 120), "blue"),
            ((20, 60, 25), "green"),
            ((225, 210, 60), "yellow"),
            ((80, 60, 45), "brown"),
        ],
    )
    def test_colour_names(self, rgb: tuple[int, int, int], name: str):
        assert NAMES[int(measure(plain(rgb))[0, 10:].argmax())] == name

    def test_one_row_an_image(self):
        rows = measure(torch.cat([plain(WATER)] * 300))
        assert rows.shape == (300, 6 + len(COVERS) + len(NAMES))
        assert torch.equal(rows[0], rows[299])

    @pytest.mark.parametrize("images", [torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8, 3).byte(), plain(WATER)[0]])
    def test_other_than_uint8_rgb(self, images: Tensor):
        message = f"images are {images.dtype} {tuple(images.shape)}, they have to be uint8 [n >= 1, 3, s, s]"
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
            measure(images)
        assert str(caught.value) == message

    def test_no_images(self):
        with pytest.raises(ValueError, match=r"^images are torch.uint8 \(0, 3, 8, 8\), they have to be "):
            describe(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "X")


class TestDescribers:
    def test_template(self):
        template = TemplateDescriber()
        assert template(plain(WATER), "SeaLake").text == "A satellite image of sea lake"
        both = template.each(torch.cat([plain(WATER), plain(SAND)]), ["SeaLake", "Desert"])
        assert both == ["A satellite image of sea lake", "A satellite image of desert"]

    def test_measured_prompt_starts_with_the_template(self):
        assert describe(plain(WATER), "SeaLake").startswith(class_prompt("SeaLake") + ", ")

    def test_vocabulary(self):
        assert len(VOCABULARY) == len(set(VOCABULARY)) < 60
        assert sorted(VOCABULARY) == list(VOCABULARY)
        assert {"A", "satellite", "built-up", "water", "north-south", "teal", "texture"} <= set(VOCABULARY)
