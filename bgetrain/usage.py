"""What `bgetrain --help` says: everything in it is read from conf/ and recipes/."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from bgetrain import __version__, config

INTRODUCTION = """bgetrain trains text-embedding models the way BGE was trained, from YAML alone.

Usage:
  bgetrain stage=NAME [GROUP=OPTION] [KEY=VALUE]    run one stage
  bgetrain recipe=NAME [KEY=VALUE]                  run a recipe's steps in order
      dry_run=true: print their command lines; from=STEP: start again there

Examples:
  bgetrain recipe=quickstart
  bgetrain stage=finetune model.path=BAAI/bge-base-en-v1.5 data=jsonl data.files=[train.jsonl] epochs=2
  bgetrain stage=evaluate model.path=outputs/finetune/model data=beir data.path=my_beir_folder
"""
CLOSING = """
Flags:
  --help         this page; with stage=NAME: every key of that stage
  --cfg job      print the composed config and stop
  -m             sweep: bgetrain -m stage=finetune optim.lr=1e-5,2e-5
  --shell-completion install=bash    complete keys and options with Tab (also zsh, fish)
  --version

Exit status: 0 done | 2 something to mend, said in one line | 75 interrupted and saved, the same command goes on | 1 a crash
"""


def text(overrides: Sequence[str]) -> str:
    """The help page; with `stage=NAME` among the overrides, that stage's keys as well.

    Raises:
        ValueError: an override that does not compose.
    """
    if any(each.startswith("stage=") for each in overrides):
        return stage_page(overrides)
    parts = [INTRODUCTION]
    for group in sorted(config.groups(), key=lambda name: (name != "stage", name)):
        parts.append(listing(f"{group}=", (config.CONF / group).glob("*.yaml")))
    parts.append(listing("recipe=", config.RECIPES.glob("*.yaml")))
    return "\n".join(parts) + CLOSING


def stage_page(overrides: Sequence[str]) -> str:
    """Every key that the stage of `overrides` has, with its value and comment."""
    try:
        cfg = config.compose_unchecked(overrides)
    except Exception:
        cfg = config.compose(overrides)  # says in one line what is wrong
    name = cfg.stage.name
    head = first_comment(config.CONF / "stage" / f"{name}.yaml")
    return f"bgetrain stage={name}: {head}\n\nKeys and values (??? must be given):\n\n{OmegaConf.to_yaml(cfg)}"


def listing(prefix: str, paths: Iterable[Path]) -> str:
    """One line for each YAML: its name and what its first comment says."""
    rows = [(f"{prefix}{path.stem}", first_comment(path)) for path in sorted(paths)]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:{width}}  {comment}" for name, comment in rows) + "\n"


def first_comment(path: Path) -> str:
    """The first line of comment that is no Hydra directive."""
    found = re.search(r"^# (?!@)(.*)$", path.read_text("utf8"), re.M)
    return found[1] if found else ""


def version_line() -> str:
    return f"bgetrain {__version__}"
