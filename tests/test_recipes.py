"""Every recipe: composed and checked at its full size, run at a thousandth of it, and its numbers held against the papers'."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from bgetrain import cli, config, recipe, recipe_file, selection

NAMES = sorted(path.stem for path in selection.RECIPES.glob("*.yaml"))


FOLDER = "outputs/run"  # of every recipe, so that steps which several have alike are composed once


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    import workplace

    folder = tmp_path_factory.mktemp("workplace")
    workplace.fill(folder)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Without what takes most of the time and is no part of the claim: composing the same twice, and drawing histograms."""
    import bgetrain.stage.filter
    import bgetrain.stage.mine

    monkeypatch.setattr(config, "compose", composed)
    for stage in (bgetrain.stage.filter, bgetrain.stage.mine):
        monkeypatch.setattr(stage, "histogram", lambda *arguments, **keywords: None)


def composed(overrides, *, missing=False, known={}, real=config.compose):  # noqa: B006 (kept from call to call, as is meant)
    key = (*overrides, missing)
    if key not in known:
        known[key] = real(overrides, missing=missing)
    return copy.deepcopy(known[key])


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_composes_and_runs_all_its_steps_at_a_thousandth_of_its_size(name, workplace, quick, monkeypatch, capsys):
    from workplace import scaled

    monkeypatch.chdir(workplace)
    shutil.rmtree("outputs", ignore_errors=True)
    steps = recipe.plan(name, FOLDER, [])
    assert [step.name for step in steps] == list(recipe_file.load(name))
    for step in steps:
        status = cli.run_stage(scaled(step.overrides))
        assert status == 0, f"{step.name}: {capsys.readouterr().err}"
        assert json.loads(Path(step.output_dir, "result.json").read_text())["status"] == "done"
