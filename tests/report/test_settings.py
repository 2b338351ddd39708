"""What a page says of a run's settings: a command that gives them again, or none."""

import shlex
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from pages import PAIRS, made, shown

from bgetrain import config, output
from bgetrain.report import run, settings


def amounts(folder: Path) -> list[str]:
    """The words of the command on a run's page."""
    found = run.read.run(folder)
    return shlex.split(settings.command(found, *settings.changed(found)) or "")


DATA = {"jsonl": ["data=jsonl", "data.files=[train.jsonl]"], "beir": ["data=beir", "data.path=x"]}
TYPED = [[f"stage={stage}", *data] for stage in ("finetune", "pairs", "filter") for data in DATA.values()]
TYPED += [["stage=finetune", *DATA["jsonl"], *more] for more in (
    ["data.columns={query: question}", "data.query_max_len=77"], ["engine.zero_optimization.stage=3", "optim.lr=3e-4"],
)]  # fmt: skip
TYPED += [["stage=pairs", "data=synthetic", "model=tiny", f"engine=zero{level}", "+engine.zero_optimization.overlap_comm=true"]
          for level in range(4)]  # fmt: skip


@pytest.mark.parametrize("typed", TYPED, ids=" ".join)
def test_the_command_on_a_page_composes_to_the_same_config(tmp_path, typed):
    folder = made(tmp_path / "run", typed, [], None)
    words = amounts(folder)
    again = OmegaConf.to_container(config.compose(words[1:]), resolve=True)
    assert output.differences(run.read.run(folder).config, again) == []
    usual = {"data=msmarco", "engine=zero1"}  # of these stages, which need not be typed
    assert {word for word in typed if word.startswith(("data=", "engine="))} - set(words) <= usual
    if "engine.zero_optimization.stage=3" in typed:  # as good as engine=zero3, and shorter to tell
        assert "engine=zero3" in words


def test_a_config_that_no_command_of_today_gives_is_shown_without_one(tmp_path):
    folder = made(tmp_path / "run", PAIRS, [], None)
    assert "The config amounts to this command" in shown(folder).text
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    del cfg["data"]["num_rows"]  # a key that came later
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    assert "The config amounts to this command" not in shown(folder).text


def test_texts_that_cannot_be_paths_lead_to_no_run(tmp_path):
    reader = tmp_path / "reader"
    assert settings.folder_of("/" + "x" * 900, reader) is None
    assert settings.folder_of("a/" + "语" * 300, reader) is None
