import geodistill


def test_public_names() -> None:
    assert dir(geodistill) == [
        "Config",
        "DistilledSet",
        "Evaluation",
        "GeodistillError",
        "SceneData",
        "Scenes",
        "builtin_scenes",
        "distill",
        "evaluate",
        "load_config",
        "open_scenes",
    ]
    assert all(hasattr(geodistill, name) for name in dir(geodistill))


def test_unknown_name() -> None:
    assert not hasattr(geodistill, "distil")
