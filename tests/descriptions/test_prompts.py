import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodistill.descriptions import class_prompt


class TestClassPrompt:
    @pytest.mark.parametrize(
        ("name", "readable"),
        [
            ("DenseResidential", "dense residential"),
            ("dense_residential", "dense residential"),
            ("dense-residential", "dense residential"),
            ("dense residential", "dense residential"),
            ("denseResidential", "dense residential"),
            ("__Dense--Residential_", "dense residential"),
            ("beach", "beach"),
            ("RIVER", "river"),
            ("SeaLake", "sea lake"),
            ("UCMercedBeach", "uc merced beach"),
            ("TVTower", "tv tower"),
            ("GolfCourseUSA", "golf course usa"),
            ("Area51", "area 51"),
            ("beach_01", "beach 01"),
            ("Zone3Beach", "zone 3 beach"),
            ("2ndStreet", "2nd street"),
            ("3DCity", "3d city"),
            ("farmer's field", "farmer's field"),
            ("CaféPlage", "café plage"),
            ("Cafe\u0301", "café"),
            ("ÜberÄcker", "über äcker"),
            ("住宅区", "住宅区"),
            ("जंगल", "जंगल"),
            ("ПортГород", "порт город"),
            ("../etc/passwd", "etc passwd"),
            ("a\tb\nc", "a b c"),
        ],
    )
    def test_readable(self, name: str, readable: str):
        assert class_prompt(name) == f"A satellite image of {readable}"

    def test_name_without_words_is_kept(self):
        assert class_prompt("---") == "A satellite image of ---"

    @given(st.text(min_size=1, max_size=20))
    def test_any_name_gives_one_line(self, name: str):
        prompt = class_prompt(name)
        assert prompt.startswith("A satellite image of ")
        assert not any(blank in prompt.removesuffix(name) for blank in "\n\t_")
