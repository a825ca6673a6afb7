"""The class prompt, with which every description begins."""

import re
import unicodedata

PREFIX = "A satellite image of"
# For a scene of unknown class.
UNNAMED = "A satellite image"


def readable(name: str) -> str:
    """Return "dense residential" for DenseResidential, dense_residential or dense-residential."""
    # ASCII punctuation and blanks separate words; letters, marks and apostrophes of any script stay.
    parts = re.split(r"[\s!-&(-/:-@\[-`{-~]+", unicodedata.normalize("NFC", name))
    words = [word for part in parts for word in _words(part)]
    return " ".join(words) or name


def class_prompt(name: str) -> str:
    """Return "A satellite image of dense residential" for the class DenseResidential; see `readable`."""
    return f"{PREFIX} {readable(name)}"


def _words(part: str) -> list[str]:
    """Split camel case and letters from digits: "UCMerced21Beach" -> ["uc", "merced", "21", "beach"]."""
    words: list[str] = []
    for position, letter in enumerate(part):
        before, after = part[max(position - 1, 0) : position], part[position + 1 : position + 2]
        hump = letter.isupper() and (before.islower() or after.islower())
        if not words or hump or (letter.isdigit() and before.isalpha()):
            words.append("")
        words[-1] += letter.lower()
    return words
