#!/usr/bin/env python3
"""The reference of all keys, read from conf/ and recipes/ whenever the pages are built: a hook of mkdocs (mkdocs.yml).

    python scripts/reference.py     # prints it as Markdown

It also puts pictures into the text of their page, where they take the page's colours, light or dark, and lets the search work in
pages that are opened as files.
"""

import ast
import html
import importlib.util
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from bgetrain import config, selection, usage
from bgetrain.target import fault, parse, signature

INTRODUCTION = """# Reference of all keys

A key is written with its value on the command line, `optim.lr=1e-5`, and an option of a group by the group's name, `data=jsonl`.
What stands here is read from the YAML files of `conf/`; `bgetrain stage=finetune --help` shows the same for one stage, with what
else the command line chooses. Under a key stand what it may be, in italics, and what its file says of it and of its source, or
else the function that takes it.
"""
SWITCH = "true or false"  # what a node without `_target_` holds
TITLES = {"data": "Data", "model": "Models", "loss": "Losses", "optim": "Optimizers", "engine": "Engines", "search": "Searches"}
TITLES |= {"cluster": "Machines", "logger": "Loggers"}


def on_files(files: Any, config: Any) -> Any:
    """Adds the page to those of `docs/` (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference.md", content=page()))
    return files


def on_page_content(content: str, *, page: Any, config: Any, files: Any) -> str:
    """Puts drawings into the text of their page (a hook of mkdocs): the colour of text is theirs only there."""
    for image, name in re.findall(r'(<img [^>]*src="([\w-]+\.svg)"[^>]*>)', content):
        content = content.replace(image, (Path(config.docs_dir) / name).read_text("utf8"))
    return content


def on_post_build(*, config: Any) -> None:
    """Writes the search's index as a script too, since a page opened as a file may read no other (a hook of mkdocs)."""
    index = Path(config.site_dir) / "search/search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text('utf8')}", "utf8")


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([INTRODUCTION, *every_stage(), *stages(), *groups(), *recipes()])


def every_stage() -> Iterator[str]:
    path = selection.CONF / "config.yaml"
    yield "## Keys of every stage\n"
    yield from entries(own_keys(path), "", usage.comments(path), top_kinds())


def stages() -> Iterator[str]:
    yield "## Stages\n"
    for name in selection.options("stage"):
        path = selection.CONF / "stage" / f"{name}.yaml"
        yield f"### `stage={name}` {{#stage-{name}}}\n"
        yield from head(path)
        chosen = [(group[1:], option) for each in defaults(name) for group, option in each.items() if group.startswith("/")]
        if chosen:
            links = [f"[`{group}={option}`](#{group}-{option})" for group, option in chosen]
            yield f"Its parts, unless others are chosen: {', '.join(links)}, and their keys.\n"
        notes = usage.comments(path)
        yield from entries(own_keys(path), "", notes, top_kinds())
        for group, node in own_keys(path).items():
            if isinstance(node, dict) and group != "stage":
                target = node.get("_target_") or selection.own_option(name, group).get("_target_")
                told = {f"{group}.{key}": text for key, text in explained(target).items()}
                yield from entries(node, f"{group}.", told | notes, kinds(target) or dict.fromkeys(node, SWITCH))


def groups() -> Iterator[str]:
    found = [group for group in selection.groups() if group != "stage"]
    for group in sorted(found, key=lambda each: (list(TITLES).index(each) if each in TITLES else len(TITLES), each)):
        yield f"## {TITLES.get(group, group.capitalize())}: `{group}=` {{#{group}}}\n"
        models = examples(group)
        said: dict[str, str] = {}  # what the functions of the group say, the first of most weight
        for target in reversed(models):
            said |= explained(target)
        for option in [*models.values(), *(each for each in selection.options(group) if each not in models.values())]:
            path = selection.CONF / group / f"{option}.yaml"
            node = yaml.safe_load(path.read_text("utf8"))
            yield f"### `{group}={option}` {{#{group}-{option}}}\n"
            yield from head(path)
            like = models[str(node["_target_"])]
            if like != option:
                yield f"Its keys are [those of `{group}={like}`](#{group}-{like}).\n"
                yield from folded(path)
            else:
                known = said | explained(node["_target_"]) | usage.comments(path)
                notes = {f"{group}.{key}": text for key, text in known.items()}
                yield from entries(node, f"{group}.", notes, kinds(node["_target_"]))


def examples(group: str) -> dict[str, str]:
    """For each function of a group the option that shows its keys: of its name, else the one that most stages choose.

    Those of their function's name come first, and of these the ones that many others are like.
    """
    found: dict[str, list[str]] = {}
    for option in selection.options(group):
        target = yaml.safe_load((selection.CONF / group / f"{option}.yaml").read_text("utf8"))["_target_"]
        found.setdefault(str(target), []).append(option)
    chosen = Counter(each.get(f"/{group}") for name in selection.options("stage") for each in defaults(name))
    best = {}
    for target, options in found.items():
        name = target.rpartition(".")[2]
        best[target] = max(options, key=lambda each, name=name: (each == name, chosen[each]))
    return dict(sorted(best.items(), key=lambda pair: (pair[1] != pair[0].rpartition(".")[2], -len(found[pair[0]]))))


def defaults(stage: str) -> list[dict[str, str]]:
    """The options that a stage chooses."""
    own = yaml.safe_load((selection.CONF / "stage" / f"{stage}.yaml").read_text("utf8"))["defaults"]
    return [each for each in own if isinstance(each, dict)]


def explained(target: str | None) -> dict[str, str]:
    """Argument -> what the docstring of a node's function says of it, for keys of which the YAML says nothing."""
    module, _, name = (target or "").rpartition(".")
    spec = importlib.util.find_spec(module) if module else None
    body = ast.parse(Path(spec.origin).read_text("utf8")).body if spec and spec.origin else []
    texts = [ast.get_docstring(each) or "" for each in body if isinstance(each, ast.FunctionDef) and each.name == name]
    section = re.search(r"^Args:\n((?:    .*\n?)+)", "".join(texts), re.M)
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section[1] if section else "", re.M)
    plain = {key: re.sub(r"\bNone\b", "null", " ".join(text.split())) for key, text in found}
    return {key: text for key, text in plain.items() if text != "the same."}


def recipes() -> Iterator[str]:
    yield "## Recipes: `recipe=` {#recipe}\n"
    for path in sorted(selection.RECIPES.glob("*.yaml")):
        yield f"`recipe={path.stem}`\n:   {escaped(usage.first_comment(path)) or '&nbsp;'}\n"


def own_keys(path: Path) -> dict[str, Any]:
    return {key: value for key, value in yaml.safe_load(path.read_text("utf8")).items() if key not in ("defaults", "stage")}


def top_kinds() -> dict[str, str]:
    """What a top-level key may be, in words."""
    return {field.name: kind(parse(str(field.type))) for field in fields(config.Config)}


def kinds(target: str | None) -> dict[str, str]:
    """What the keys of a node may be, in words, from the signature of its `_target_`."""
    known = signature(target) if target else None
    return {name: kind(annotation) for name, annotation in known.parameters.items()} if known else {}


def kind(annotation: ast.expr | None) -> str:
    """What values an annotation admits, in words; nothing where it admits all. A list is asked for what is in it."""
    return fault([object()], annotation) or fault(object(), annotation) or ""


def entries(node: dict[str, Any], prefix: str, notes: dict[str, str], words: dict[str, str]) -> Iterator[str]:
    """A definition for each key: its value, what it may be, its comment. Groups are left to others."""
    for key, value in node.items():
        if key == "_target_" or (isinstance(value, dict) and not prefix):
            continue
        name = f"{prefix}{key}"
        told = [f"*{escaped(words[key])}.*"] if words.get(key) else []
        told += [escaped(notes[name])] if name in notes else []
        if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
            yield f"`{name}`\n:   {' '.join(told) or '&nbsp;'}\n"
            sources = {each: f"  # {notes[f'{name}.{each}']}" if f"{name}.{each}" in notes else "" for each in value}
            yield from block("yaml", [f"{each}: {usage.typed(one)}{sources[each]}" for each, one in value.items()], indent="    ")
        else:
            shown = "must be given" if value == "???" else f"`{usage.typed(value)}`"
            yield f"`{name}` = {shown}\n:   {' '.join(told) or '&nbsp;'}\n"


def head(path: Path) -> Iterator[str]:
    """What a YAML says first, as paragraphs; lines that are indented are code."""
    prose: list[str] = []
    for line in path.read_text("utf8").splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("#   "):
            yield from [" ".join(prose), *block("bash", [line[1:].strip()])]
            prose = []
        elif not line.startswith("# @"):
            prose.append(escaped(line[1:].strip()))
    yield " ".join(prose) + "\n"


def folded(path: Path) -> Iterator[str]:
    """The keys of a YAML as they stand there, shown on demand."""
    lines = [line for line in path.read_text("utf8").splitlines() if not line.startswith(("#", "_target_"))]
    yield '<details markdown="1"><summary>Their values</summary>\n'
    yield from block("yaml", lines)
    yield "</details>\n"


def block(language: str, lines: list[str], indent: str = "") -> Iterator[str]:
    yield "\n".join(f"{indent}{line}" for line in ["", f"```{language}", *lines, "```", ""])


def escaped(text: str) -> str:
    """A comment as Markdown shows it letter by letter."""
    plain = re.split(r"(`[^`]+`)", text)  # with what is code already between
    plain[::2] = [re.sub(r"([\\`*_\[\]#|])", r"\\\1", html.escape(each, quote=False)) for each in plain[::2]]
    return "".join(plain)


if __name__ == "__main__":
    print(page())
