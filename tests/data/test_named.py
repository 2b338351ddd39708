"""The named sets of conf/data: rows in the form in which each is published are read as what they mean."""

from typing import Any

import datasets
import pytest
import yaml
from named import CASES, write
from omegaconf import OmegaConf

from bgetrain import config, selection
from bgetrain.target import call

# options that name no set: formats, what reads this machine, benchmarks
FORMATS = {"beir", "jsonl", "text", "mixture", "pydocs", "synthetic", "mteb", "c-mteb"}


def node_of(option: str) -> dict[str, Any]:
    return yaml.safe_load((selection.CONF / "data" / f"{option}.yaml").read_text("utf8"))


def sets() -> list[str]:
    return sorted(
        each for each in selection.options("data") if each not in FORMATS and "mixture" not in node_of(each)["_target_"]
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("option", sets())
def test_rows_as_they_are_published_are_read_as_what_they_mean(option, tmp_path):
    assert option in CASES, f"conf/data/{option}.yaml has no rows here: give some in the form in which the set is published"
    case = CASES[option]
    for name, rows in case.files.items():
        write(tmp_path / "repository" / name, rows)
    place = f"data.path={tmp_path}/repository"
    if not node_of(option)["_target_"].endswith(".hub"):
        place = f"data.files=[{','.join(str(tmp_path / 'repository' / name) for name in case.files)}]"
    cfg = config.compose(["stage=tokenizer", f"data={option}", place])
    source = call(OmegaConf.to_container(cfg.data, resolve=True))
    if case.read and isinstance(case.read[0], str):
        assert source.rows is None
        opened = source.texts()
    else:
        opened = source.rows()
    assert opened.take(range(len(opened))) == case.read


@pytest.mark.parametrize("option", sets())
def test_every_set_says_where_its_numbers_and_its_licence_are_from(option):
    head = [line for line in (selection.CONF / "data" / f"{option}.yaml").read_text("utf8").splitlines() if line.startswith("#")]
    assert len(head) >= 2, "a first line for menus, and then what is known of rows, licence and columns"
    assert any(word in " ".join(head) for word in ("CC BY", "Apache", "licence", "non-commercial", "terms"))


def test_every_case_is_of_a_set_that_is_there():
    assert sorted(CASES) == sets()


@pytest.mark.parametrize("option", ["pairs-en", "pairs-zh", "supervised-en", "supervised-zh"])
def test_a_mixture_opens_every_set_that_it_names(option, tmp_path):
    named = node_of(option)["sources"]
    paths = []
    for name, node in named.items():
        case = CASES[node["data"]]
        for file, rows in case.files.items():
            chosen = node["files"] if file == "gooaq_pairs.jsonl.gz" else file
            write(tmp_path / name / chosen, rows)
        paths.append(f"data.sources.{name}.path={tmp_path}/{name}")
    cfg = config.compose(["stage=pairs", f"data={option}", *paths])
    mix = call(OmegaConf.to_container(cfg.data, resolve=True)).mix
    assert [part.name for part in mix.parts] == list(named)
    for part in mix.parts:
        assert part.source.query_max_len == 128  # what the stage says of all goes before what a set says
        rows = part.source.rows()
        assert rows.take(range(len(rows))) == CASES[named[part.name]["data"]].read
    weights = [part.weight for part in mix.parts]
    assert None not in weights or set(weights) == {None}


def test_bge_s_shares_of_its_chinese_pairs():
    weights = {name: node["weight"] for name, node in node_of("pairs-zh")["sources"].items()}
    unpublished = {"wudao": 47099374, "zhihu": 30000000, "baike": 18257816, "news": 5061912, "paper": 948795, "webqa": 16609624}
    rest = {"dureader_checklist": 1404, "simclue": 389370, "amazon_reviews": 200000}
    assert sum({**weights, **unpublished, **rest}.values()) == 120_458_748
