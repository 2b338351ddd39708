"""Names of the tasks and benchmarks of the `mteb` package, without importing it: that takes seconds, and torch."""

import difflib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ALIASES = {"C-MTEB": "MTEB(cmn, v1)"}  # what its authors call it
NAMES = re.compile(r'\bname=f?"([^"]+)"')
LISTS = re.compile(r"\baliases=\[([^\]]*)\]")


def check(names: Sequence[str]) -> None:
    """Holds names of tasks and benchmarks against those that the installed package has.

    Raises:
        ValueError: the package is not installed; or there is no such name.
    """
    folder = installed()
    if folder is None:
        raise ValueError("data=mteb needs the package mteb, which is not installed: pip install 'bgetrain[mteb]'")
    for name in names:
        known = quick(folder)
        if not known or plain(name) in known:
            continue
        known = known | thorough(folder)
        if plain(name) not in known:
            raise ValueError(unknown(name, known))


def unknown(name: str, known: Mapping[str, str]) -> str:
    """Says that there is no such name, and which are near.

    Args:
        name: as given.
        known: names as they are compared -> as they are.
    """
    near = dict.fromkeys(known[each] for each in difflib.get_close_matches(plain(name), known, 3, 0.6))
    rest = f"did you mean {' or '.join(near)}?" if near else "`mteb available-tasks` lists all"
    return f"data.tasks has {name!r}, which is no task and no benchmark of mteb; {rest}"


def plain(name: str) -> str:
    """A name as it is compared: `mteb(eng,v1)` is `MTEB(eng, v1)`."""
    return name.replace(" ", "").lower()


@cache
def installed() -> Path | None:
    found = importlib.util.find_spec("mteb")
    return Path(found.origin).parent if found is not None and found.origin else None


@cache
def quick(folder: Path) -> dict[str, str]:
    """Most names: of the tasks that have statistics, each in a file called by it, and of benchmarks."""
    names = [path.stem for path in (folder / "descriptive_stats").rglob("*.json")]
    for path in (folder / "benchmarks").rglob("*.py"):
        text = path.read_text("utf8")
        names += NAMES.findall(text) + [each for line in LISTS.findall(text) for each in re.findall('"([^"]+)"', line)]
    return {plain(name): name for name in [*names, *ALIASES]} if names else {}


@cache
def thorough(folder: Path) -> dict[str, str]:
    """The others: of thousands of files."""
    return {plain(name): name for path in (folder / "tasks").rglob("*.py") for name in NAMES.findall(path.read_text("utf8"))}
