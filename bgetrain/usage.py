"""What `bgetrain --help` says: everything in it is read from conf/ and recipes/."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from bgetrain import __version__, config, selection, trust

INTRODUCTION = """bgetrain trains text-embedding models the way BGE was trained, from YAML alone.

Usage:
  bgetrain stage=NAME [GROUP=OPTION] [KEY=VALUE]    run one stage
  bgetrain recipe=NAME [KEY=VALUE]                  run a recipe's steps in order
      dry_run=true: print their command lines; from=STEP: start again there; cluster=slurm: submit a job for each
  bgetrain stage=status [output_dir=FOLDER]         how runs and jobs stand: state, progress, losses, time left

Examples:
  bgetrain recipe=quickstart
  bgetrain stage=finetune model.path=BAAI/bge-base-en-v1.5 data=jsonl 'data.files=[train.jsonl]' epochs=2
  bgetrain stage=evaluate model.path=outputs/finetune/model data=beir data.path=my_beir_folder
"""
CLOSING = """
Flags:
  --help         this page; with stage=NAME: every key of that stage
  --cfg job      print the composed config and stop (--resolve: with references filled in)
  -m             sweep: bgetrain -m stage=finetune optim.lr=1e-5,2e-5 (with cluster=slurm a job array)
  --shell-completion install=bash    what Tab needs to complete keys and options (also zsh, fish):
                 eval "$(bgetrain --shell-completion install=bash)"
  --version

Exit status: 0 done | 2 something to mend, said in one line | 75 interrupted, the same command goes on | 1 a crash
"""
TITLES = {"stage": "Stages", "model": "Models", "data": "Data", "loss": "Losses", "optim": "Optimizers"}
TITLES |= {"engine": "Engines", "cluster": "Machines", "logger": "Loggers"}
WIDTH = 118
LISTED = 20  # rows of a table that are shown with their values


def text(arguments: Sequence[str]) -> str:
    """The help page; with `stage=NAME` among the arguments, that stage's keys instead.

    Raises:
        ValueError: an override that does not compose.
    """
    if any(each.startswith("stage=") for each in arguments):
        return stage_page(arguments)
    parts = [INTRODUCTION]
    groups = selection.groups()
    for group in sorted(groups, key=lambda name: (list(TITLES).index(name) if name in TITLES else len(TITLES), name)):
        parts.append(listing(TITLES.get(group, group.capitalize()), f"{group}=", (selection.CONF / group).glob("*.yaml")))
    parts.append(listing("Recipes", "recipe=", selection.RECIPES.glob("*.yaml")))
    return "\n".join(parts) + CLOSING


def listing(title: str, prefix: str, paths: Iterable[Path]) -> str:
    """One line for each YAML: its name and what its first comment says."""
    rows = [(f"{prefix}{path.stem}", first_comment(path)) for path in sorted(paths)]
    width = max((len(name) for name, _ in rows), default=0)
    return f"{title}:\n" + "".join(entry(name, comment, width) for name, comment in rows)


def entry(name: str, comment: str, width: int) -> str:
    """`  name  comment`, the comment folded under itself."""
    if not comment:
        return textwrap.fill(name, WIDTH, initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False) + "\n"
    start = f"  {name:{width}}  "
    wrapped = textwrap.fill(comment, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)
    return wrapped.rstrip() + "\n"


def first_comment(path: Path) -> str:
    """The first line of comment that is no Hydra directive."""
    found = re.search(r"^# (?!@)(.*)$", path.read_text("utf8"), re.M)
    return found[1] if found else ""


def stage_page(overrides: Sequence[str]) -> str:
    """Every key that the stage of `overrides` has, as one would type it, with its value and its YAML's comment."""
    cfg = config.compose(overrides, missing=True)
    name, chosen = cfg.stage.name, config.choices(overrides)
    own = selection.CONF / "stage" / f"{name}.yaml"
    notes = comments(selection.CONF / "config.yaml") | comments(own)
    top = {key: value for key, value in unresolved(cfg).items() if not isinstance(value, dict)}
    head = textwrap.fill(f"bgetrain stage={name}: {first_comment(own)}", WIDTH)
    parts = [f"{head}\n", "Keys and their values (??? must be given):"]
    parts.append(keys(top, "", notes))
    for group, node in unresolved(cfg).items():
        if not isinstance(node, dict) or group == "stage":
            continue
        heading, group_notes = f"{group}:", {}
        if group in chosen:
            path = selection.CONF / group / f"{chosen[group]}.yaml"
            heading = f"{group}={path.stem}: {first_comment(path)}"
            group_notes = {f"{group}.{key}": comment for key, comment in comments(path).items()}
            others = [other for other in selection.options(group) if other != path.stem]
            heading += f" (or {', '.join(others)})" if others else ""
        parts.append(textwrap.fill(heading, WIDTH, subsequent_indent="    "))
        parts.append(keys(node, f"{group}.", group_notes | notes))
    return "\n".join(part for part in parts if part)


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    plain = trust.masked(OmegaConf.to_container(cfg, resolve=False))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def keys(node: dict[str, Any], prefix: str, notes: dict[str, str]) -> str:
    """A line `key=value  comment` for each key of a node; of a table of mappings one for each row; of a long one names."""
    rows, tables = [], ""
    for key, value in node.items():
        if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
            if len(value) > LISTED:
                tables += entry(f"{prefix}{key}:", ", ".join(value), 0)
                continue
            tables += "".join(entry(f"{prefix}{key}.{name}={typed(each)}", "", 0) for name, each in value.items())
        elif key != "_target_":
            rows.append((f"{prefix}{key}", f"{prefix}{key}={typed(value)}"))
    width = min(44, max((len(shown) for _, shown in rows), default=0))
    return "".join(entry(shown, notes.get(key, ""), width) for key, shown in rows) + tables


def typed(value: Any) -> str:
    """A value as the command line takes it."""
    flow = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
    return '""' if value == "" else flow


def comments(path: Path) -> dict[str, str]:
    """Dotted key -> the comment at the end of its line."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in path.read_text("utf8").splitlines():
        match = re.match(r"( *)([\w-]+):(?:[^#]|#(?! ))*?(?:\s# (.*))?$", line)
        if match:
            depth = len(match[1]) // 2
            above = [*above[:depth], match[2]]
            if match[3]:
                found[".".join(above)] = match[3]
    return found


def version_line() -> str:
    return f"bgetrain {__version__}"
