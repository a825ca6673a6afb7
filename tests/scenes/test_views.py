import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from geodistill.scenes.views import _resizing, dihedral, nearer


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
