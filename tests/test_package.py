import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_readme_on_a_package_index_needs_no_other_file() -> None:
    """The build applies these substitutions, of hatch-fancy-pypi-readme, to README.md."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for one in about["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(one["pattern"], one["replacement"], text)
    assert "![" not in text
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]*)\)", text))
    assert "docs/guide.md describes everything else" in text.replace("**", "")
