from geodistill.cli.options import one_by_one


def test_an_option_takes_several_values() -> None:
    args = ["DATA", "--ipc", "1", "10", "--seeds", "3", "--methods", "random", "--out", "RUN"]
    wanted = ["DATA", "--ipc", "1", "--ipc", "10", "--seeds", "3", "--methods", "random", "--out", "RUN"]
    assert list(one_by_one(args, {"--ipc", "--methods"})) == wanted
