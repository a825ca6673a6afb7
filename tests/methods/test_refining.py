import torch

from geodistill.config import Config
from geodistill.evaluation.networks import pretrained
from geodistill.methods.refining import _in_turn
from geodistill.refinement import Lesson, MeansLesson
from geodistill.scenes import Scenes

SET = torch.tensor([0, 1])


def _lessons(scenes: Scenes) -> list[Lesson]:
    return [Lesson(pretrained(), SET, torch.zeros(len(scenes), 4), scenes.labels) for _ in range(3)]


def test_random_networks_take_every_fourth_turn(pair: Scenes, tiny: Config):
    lessons = _lessons(pair)
    lesson_at = _in_turn(lessons, SET, pair, tiny)
    for step, known in ((0, 0), (1, 1), (2, 2), (4, 0), (5, 1), (6, 2), (8, 0)):
        assert lesson_at(step) is lessons[known]
    one, again, next_one = lesson_at(3), lesson_at(3), lesson_at(7)
    assert isinstance(one, MeansLesson)
    assert torch.equal(one.real, again.real)  # whenever it is asked: a run that goes on ends with the same latents
    assert not torch.equal(one.real, next_one.real)


def test_without_random_networks(pair: Scenes, tiny: Config):
    lessons = _lessons(pair)
    config = tiny.model_copy(update={"refinement": tiny.refinement.model_copy(update={"random": False})})
    lesson_at = _in_turn(lessons, SET, pair, config)
    for step, known in enumerate((0, 1, 2, 0, 1)):
        assert lesson_at(step) is lessons[known]
