import pytest
import torch
from made import make_set

from geodistill.distilled import DistilledSet


@pytest.mark.parametrize("old_is_moved", [False, True])
@pytest.mark.parametrize("then", ["load", "save"])
def test_a_kill_while_a_set_is_replaced_leaves_the_new_one(tmp_path, old_is_moved, then):
    old, new = make_set(), make_set()
    new.images = 255 - old.images
    target = old.save(tmp_path / "set")
    new.save(tmp_path / "other").rename(tmp_path / ".set.ready")
    if old_is_moved:
        target.rename(tmp_path / ".set.old")
    if then == "save":
        newest = make_set()
        newest.images = new.images // 2
        newest.save(target)
        new = newest
    before = sorted(path.name for path in tmp_path.iterdir())
    assert torch.equal(DistilledSet.load(target).images, new.images)
    # Reading moves nothing, as another process may be about to; saving clears up.
    assert sorted(path.name for path in tmp_path.iterdir()) == (["set"] if then == "save" else before)
