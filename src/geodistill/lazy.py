"""What is imported when it is first asked for: names of a package, and packages that only some users need."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the `__getattr__` (PEP 562) of `package`; `homes` maps its submodules to the names that they hold.

    >>> lazy_names("json", {"decoder": ["JSONDecoder"]})("JSONDecoder").__name__
    'JSONDecoder'
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in home_of:
            return getattr(import_module(f"{package}.{home_of[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


def optional(module: str, what: str, extra: str, kind: type[Exception]) -> Any:
    """Return `module`, which `what` needs; raise `kind` that names the extra if it cannot be imported.

    >>> optional("json", "this", "none", ImportError).dumps([1])
    '[1]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise kind(
            f"{what} needs {module}, which cannot be imported ({error}): pip install 'geodistill[{extra}]'"
        ) from error
