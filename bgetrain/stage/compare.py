"""stage=compare: runs of one stage beside each other: settings, figures, curves, and whether a difference may be chance."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bgetrain import output
from bgetrain.logger import console
from bgetrain.report import read
from bgetrain.report.tables import Table

OWN = ("output_dir", "resume")  # keys whose values say nothing about what a run does
LEFT_OUT = ("stage", "status", "finished_at", "progress_ratio", "seconds_left")  # of a result or a line: no figures
MEASURES = ("ndcg@10", "mrr@10", "recall@10", "recall@100", "map")
NONE = "-"
Queries = dict[tuple[str, str], dict[str, float]]  # (data set, query) -> its figures


class Side(NamedTuple):
    """A run among others.

    Attributes:
        name: the end of its path that tells it from them.
        run: what its folder has.
    """

    name: str
    run: read.Run


def run(cfg: Mapping[str, Any]) -> None:
    """Shows runs beside each other, in the terminal and as `output_dir`/compare.html.

    Args:
        cfg: the resolved config, as `conf/stage/compare.yaml` has it.

    Raises:
        ValueError: fewer than two runs, one that is not there, or twice, or of another stage; the page cannot be written.
    """
    sides = opened(cfg["runs"])
    chance, notes = significance(sides, cfg["seed"])
    notes = [*(unfinished(each) for each in sides if each.run.state != "done"), *notes]
    tables = [each for each in (settings(sides), figures(sides), chance) if each.rows]
    for each in tables:
        console.table(each.title, each.columns, each.rows)
    for note in notes:
        print(note)
    path = Path(os.path.expanduser(cfg["output_dir"])) / "compare.html"
    from bgetrain.report import compare  # which draws

    try:
        compare.write(path, {each.name: each.run for each in sides}, tables, notes)
    except OSError as error:
        raise ValueError(f"output_dir={path.parent}: {path.name} cannot be written: {error.strerror}") from error
    print(f"the same with curves: {path}")


def opened(paths: Sequence[str]) -> list[Side]:
    """The runs in these folders.

    Raises:
        ValueError: what `run` says of them.
    """
    folders = [Path(os.path.expanduser(each)) for each in paths]
    if len(folders) < 2:
        raise ValueError(f"runs={list(paths)} must be two folders of runs or more, e.g. runs=[outputs/a,outputs/b]")
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"runs: there is no folder {folder}: name the output_dir of a run")
        if not (folder / "config.yaml").is_file():
            below = sorted(str(each.parent) for each in folder.glob("*/config.yaml"))
            instead = f"did you mean {' or '.join(below[:3])}?" if below else "name the output_dir of a run"
            raise ValueError(f"runs: {folder} is no folder of a run, it has no config.yaml; {instead}")
    real = [folder.resolve() for folder in folders]
    again = [folder for number, folder in enumerate(folders) if real[number] in real[:number]]
    if again:
        raise ValueError(f"runs: {again[0]} is there twice: name runs that differ")
    found = [read.run(folder) for folder in folders]
    others = [each for each in found if each.stage != found[0].stage]
    if others:
        raise ValueError(
            f"runs must be of one stage: {folders[0]} is of stage={found[0].stage}, "
            f"{folders[found.index(others[0])]} of stage={others[0].stage}"
        )
    return [Side(name, each) for name, each in zip(short(real), found, strict=True)]


def short(folders: Sequence[Path]) -> list[str]:
    """The least number of names at the ends of paths by which all differ."""
    for count in range(1, max(len(each.parts) for each in folders)):
        names = ["/".join(each.parts[-count:]) for each in folders]
        if len(set(names)) == len(names):
            return names
    return [str(each) for each in folders]


def unfinished(side: Side) -> str:
    """That a run is not done, and how far it is."""
    last = side.run.steps[-1] if side.run.steps else None
    state = "still running" if side.run.state == "running" else "not finished"
    if last is None:
        return f"{side.name} is {state} and has logged no step: it has no figures"
    return f"{side.name} is {state}: its figures are those of step {last['step']:,} ({100 * last['progress_ratio']:.0f} %)"


def settings(sides: Sequence[Side]) -> Table:
    """The keys whose values differ; those that decide what comes out stand first."""
    rows: dict[str, list[Any]] = {}
    for place, side in enumerate(sides):
        for key, first, own in output.differences(sides[0].run.config, side.run.config):
            if key.split(".")[0] not in OWN:
                rows.setdefault(key, [first] * len(sides))[place] = own
    ordered = sorted(rows, key=lambda key: output.is_free(key, sides[0].run.config))
    cells = [[key, *map(output.short, rows[key])] for key in ordered]
    count = f"{len(cells) or 'no'} setting{'s differ' if len(cells) > 1 else ' differs'}"
    return Table(f"{sides[0].run.stage}: {count}", ["", *(each.name for each in sides)], cells, 0)


def figures(sides: Sequence[Side]) -> Table:
    """The figures at the end; of a run that is not done, those of its last step. Two runs get their difference as well."""
    found = [numbers(each.run) for each in sides]
    rows = []
    for name in dict.fromkeys(name for each in found for name in each):
        values = [each.get(name) for each in found]
        known = [value for value in values if value is not None]
        counted = all(float(value).is_integer() for value in known) and max(map(abs, known)) > 1
        written = [int(value) if counted else float(value) for value in known]
        more = [signed(written[1] - written[0]) if len(known) == 2 else NONE] if len(sides) == 2 else []
        cells = iter(map(console.number, written))
        rows.append([name, *(NONE if value is None else next(cells) for value in values), *more])
    return Table("figures", ["", *(each.name for each in sides), *(["difference"] if len(sides) == 2 else [])], rows, 0)


def signed(value: float) -> str:
    text = console.number(value)
    return text if text.startswith("-") or not value else f"+{text}"


def numbers(run: read.Run) -> dict[str, float]:
    """Every figure of a result by its name, those below others by a path; the last line's where there is no result."""

    def walk(node: Mapping[str, Any], above: str) -> Iterator[tuple[str, float]]:
        for name, value in node.items():
            if name in LEFT_OUT or (name == "sets" and len(value) == 1):  # whose figures are those of the whole
                continue
            if isinstance(value, Mapping):
                yield from walk(value, above if name in ("metrics", "training") else f"{above}{name}/")
            elif read.is_number(value):
                yield f"{above}{name}", value

    if run.state == "done":
        return dict(walk(run.result, ""))
    return dict(walk(run.steps[-1], "")) if run.steps else {}


def significance(sides: Sequence[Side], seed: int) -> tuple[Table, list[str]]:
    """Tests each run against the first, on the queries of both; and what could not be tested, line by line."""
    columns = ["against the first", "data", "figure", "queries", "first", "other", "difference", "95 % interval", "p"]
    found = [queries(each.run.folder / "queries.jsonl") for each in sides]
    rows: list[list[str]] = []
    notes = [
        f"{each.name} has no queries.jsonl, the figures of single queries: no test of significance against it"
        for each, own in zip(sides, found, strict=True)
        if own is None and (any(found) or each.run.stage == "evaluate")
    ]
    for side, own in zip(sides[1:], found[1:], strict=True):
        if found[0] is None or own is None:
            continue
        both = [key for key in found[0] if key in own]
        for data in dict.fromkeys(key[0] for key in [*found[0], *own]):
            sizes = [sum(key[0] == data for key in each) for each in (found[0], own, both)]
            if sizes != [sizes[2]] * 3:
                notes.append(
                    f"{data}: {sizes[0]:,} queries of {sides[0].name} and {sizes[1]:,} of {side.name}, "
                    + (f"tested on the {sizes[2]:,} that both have" if sizes[2] else "none in both: not tested")
                )
            if sizes[2]:
                rows += tested(side.name, data, found[0], own, [key for key in both if key[0] == data], seed)
    title = "significance of differences: Fisher's randomisation test, on the queries of both"
    return Table(title, columns, rows, 0), notes


def tested(name: str, data: str, first: Queries, other: Queries, both: Sequence[tuple[str, str]], seed: int) -> list[list[str]]:
    """A row for each measure that all queries of both have."""
    from bgetrain.metric.significance import paired  # which imports numpy

    rows = []
    for measure in MEASURES:
        if not all(measure in first[key] and measure in other[key] for key in both):
            continue
        one, two = ([each[key][measure] for key in both] for each in (first, other))
        test = paired(two, one, seed=seed)
        means = (console.number(sum(each) / len(each)) for each in (one, two))
        between = f"{signed(test.low)} to {signed(test.high)}"
        rows.append([name, data, measure, f"{len(both):,}", *means, signed(test.difference), between, f"{test.p:.4f}"])
    return rows


def queries(path: Path) -> Queries | None:
    """The figures of single queries; None: there is no such file.

    Raises:
        ValueError: a line is not what stage=evaluate writes.
    """
    if not path.is_file():
        return None
    found: Queries = {}
    for number, line in enumerate(path.read_text("utf8").splitlines(), 1):
        try:
            row = json.loads(line)
            key = row.pop("data"), row.pop("query")
            found[key] = {name: float(value) for name, value in row.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: is not a query with its figures, as stage=evaluate writes it") from error
    return found
