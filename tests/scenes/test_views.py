import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from geodistill.scenes.views import _resizing, as_rgb, dihedral, nearer, resized


def test_eight_symmetries_are_all_different_and_lose_nothing() -> None:
    image = torch.arange(9).view(1, 3, 3)
    views = [dihedral(image, view) for view in range(8)]
    assert torch.equal(views[0], image)
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert all(view.flatten().sort().values.tolist() == list(range(9)) for view in views)


def test_mirrors_and_the_swap_of_rows_and_columns() -> None:
    image = torch.tensor([[[1, 2], [3, 4]]])
    found = [dihedral(image, view).flatten().tolist() for view in (1, 2, 4)]
    assert found == [[2, 1, 4, 3], [3, 4, 1, 2], [1, 3, 2, 4]]


def test_mirrors_come_before_the_swap() -> None:
    image = torch.tensor([[[1, 2], [3, 4]]])
    assert [dihedral(image, view).flatten().tolist() for view in (5, 6)] == [[2, 4, 1, 3], [3, 1, 4, 2]]


def test_shown_as_rgb() -> None:
    images = torch.arange(2 * 5).view(2, 5, 1, 1).to(torch.uint8)
    assert as_rgb(images).flatten(1).tolist() == [[0, 1, 2], [5, 6, 7]]
    assert as_rgb(images[:, :2]).flatten(1).tolist() == [[0, 0, 0], [5, 5, 5]]
    assert as_rgb(images[:, :3]).flatten(1).tolist() == [[0, 1, 2], [5, 6, 7]]


def test_resized_shows_the_whole_image() -> None:
    # Left half dark, right half bright; a quarter brighter at the top.
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[..., 16:] = 200
    image[:, 1, :8] += 40
    small = resized(image, 8)
    assert small.shape == (1, 3, 8, 8)
    assert small[0, 0, :, 1].tolist() == [0] * 8
    assert small[0, 0, :, 6].tolist() == [200] * 8
    assert abs(int(small[0, 1, 0, 0]) - 40) <= 1
    assert small[0, 1, 7, 0] == 0


def test_windows_have_any_place_and_size() -> None:
    # Values tell column and row of each pixel, so a window's place and side can be read from its corners.
    side, size, count = 24, 8, 400
    places = (torch.arange(side) * 10).to(torch.uint8)
    image = torch.stack([places.expand(side, side), places[:, None].expand(side, side), places.expand(side, side)])
    views = nearer(image.expand(count, 3, side, side), size, torch.Generator().manual_seed(0)).float() / 10
    columns, rows = views[:, 0, 4], views[:, 1, :, 4]
    sides = ((columns[:, 5] - columns[:, 2]) / 3 * size).round()
    assert set(sides.tolist()) == set(map(float, range(size, side + 1)))
    starts = torch.stack([columns.mean(1), rows.mean(1)], dim=1) - (sides[:, None] - 1) / 2
    closest = sides < size + 3
    assert starts[closest].min() < 1
    assert starts[closest].amax(0).min() > side - size - 3
    assert (starts[:, 0] - starts[:, 1]).abs().max() > 8  # rows and columns start at different places
    assert len(starts[closest].round().unique(dim=0)) > 20


@given(st.integers(0, 2**31), st.integers(0, 6))
def test_nearer_view_is_a_part_of_the_scene_at_full_size(seed: int, more: int) -> None:
    # Red tells the column, green the row: both rise evenly in any window, from a start that lies inside.
    side, size = 8 + more, 8
    places = torch.arange(side, dtype=torch.uint8) * 10
    image = torch.stack([places.expand(side, side), places[:, None].expand(side, side), torch.zeros(side, side)])
    view = nearer(image[None].to(torch.uint8), size, torch.Generator().manual_seed(seed))
    assert view.shape == (1, 3, size, size)
    columns, rows = view[0, 0].float(), view[0, 1].float()
    for ramp in (columns.mean(0), rows.mean(1)):
        steps = ramp[2:-1] - ramp[1:-2]  # the borders of a resized ramp are bent
        assert (steps > 8).all()
        assert (steps < 10 * side / size + 2).all()
    assert (view[0, 2] == 0).all()


@given(st.integers(8, 24), st.integers(0, 24), st.integers(0, 2**31))
def test_a_window_is_resized_as_torch_resizes_it(side: int, start: int, seed: int) -> None:
    whole, size = 24, 8
    start = min(start, whole - side)
    row = torch.rand(1, 1, 1, whole, generator=torch.Generator().manual_seed(seed))
    ours = row[0, 0] @ _resizing(torch.tensor([start]), torch.tensor([side]), size, whole)[0].T
    window = row[..., start : start + side].expand(1, 1, side, side)
    theirs = F.interpolate(window, (size, size), mode="bicubic", antialias=True, align_corners=False)
    assert torch.allclose(ours[0], theirs[0, 0, 0], atol=1e-5)


def test_nearer_views_differ_and_repeat_with_the_generator() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, again, other = (nearer(images, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_an_image_of_the_wanted_size_is_left_as_it_is() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearer(images, 16, torch.Generator()), images)
