from geodistill.scenes import Scenes
from geodistill.scenes.splits import hold_out
from geodistill.stages.teacher import _held


def test_no_class_is_held_out_whole(pair: Scenes) -> None:
    _, held = hold_out(pair, 0.5, "teacher")
    rare = [k for k in held.tolist() if pair.labels[k] == 1][:3]
    scenes = pair.subset(sorted([*range(30), *rare]))
    validated = _held(scenes, 0.5)
    assert set(scenes.labels[validated].tolist()) == {0}
    assert len(validated) == int((pair.labels[held] == 0).sum())
