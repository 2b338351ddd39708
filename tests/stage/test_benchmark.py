"""stage=evaluate data=mteb: real task classes of the mteb package on small data sets in the hub's layout."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS
from hubs import write_hub, write_set
from ranks import run_stage

from bgetrain import mteb_names
from bgetrain.metric import benchmark
from bgetrain.metric.averages import Score, averages
from bgetrain.metric.tasks import chosen
from bgetrain.sources import Benchmark

pytestmark = pytest.mark.skipif(find_spec("mteb") is None, reason="pip install mteb")  # whose import takes seconds on each rank
TASKS = {
    "SciFact": "Retrieval",
    "CMedQAv1-reranking": "Reranking",
    "BIOSSES": "STS",
    "Ocnli": "PairClassification",
    "Banking77Classification": "Classification",
    "TwentyNewsgroupsClustering": "Clustering",
    "SummEval": "Summarization",
}
INSTRUCTION = f"{WORDS[3]} {WORDS[40]}: "


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """Data sets of seven tasks, one of each type, at ORG/NAME."""
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def world():
    from bgetrain import distributed

    return distributed.start(0, 1, 0, 1, 1.0)


def overrides(model: Path, hub: Path, out: Path, tasks: Any = tuple(TASKS)) -> list[str]:
    """Of a run with an instruction for retrieval."""
    names = ",".join(tasks)
    data = ["data=mteb", f"data.tasks=[{names}]", f"data.folder={hub}", "data.query_max_len=24", "data.passage_max_len=24"]
    data.append(f"data.query_instruction='{INSTRUCTION}'")
    return ["stage=evaluate", f"model.path={model}", *data, "precision=fp32", "chunk_tokens=512", f"output_dir={out}"]


def on_a_rank(world: Any, model: Path, hub: Path, out: Path) -> dict[str, Any]:
    """The figures of all tasks; how many texts this rank embedded; whether it has imported mteb."""
    import sys

    from bgetrain.search import encode

    counts, embed = [], encode.embed

    def counted(encoder: Any, text: Any, *others: Any) -> Any:
        counts.append(len(text.lengths))
        return embed(encoder, text, *others)

    encode.embed = counted
    figures = run_stage(world, overrides(model, hub, out))
    return {**figures, "texts": counts, "imported": "mteb" in sys.modules}


@pytest.fixture(scope="module")
def alone(world, hub, model_folder, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run on one rank: its folder and its figures."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    return out, run_stage(world, overrides(model_folder, hub, out))


def scores_of(figures: dict[str, Any]) -> dict[str, float]:
    return {name: each["score"] for name, each in figures["tasks"].items()}


def test_scores_of_all_types_are_those_of_mteb_with_sentence_transformers(alone, hub, model_folder):
    import mteb
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    def theirs(names: list[str], prompts: dict[str, str]) -> dict[str, float]:
        modules = [Transformer(str(model_folder), max_seq_length=24), Pooling(32, "cls"), Normalize()]
        model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts)
        tasks = chosen(Benchmark(names, [], [], str(hub), [], []))
        made = mteb.evaluate(model, tasks, cache=None, co2_tracker=False, show_progress_bar=False)
        return {each.task_name: each.get_score() for each in made.task_results}

    figures = alone[1]
    assert {name: each["type"] for name, each in figures["tasks"].items()} == TASKS
    # mteb's own way to say: queries of retrieval tasks alone
    expected = theirs(list(TASKS), {"Retrieval-query": INSTRUCTION})
    assert scores_of(figures) == pytest.approx(expected, abs=1e-4)
    without = theirs(["SciFact"], {})
    assert abs(without["SciFact"] - expected["SciFact"]) > 0.01
    assert figures["metrics"]["mean_task"] == pytest.approx(sum(expected.values()) / 7, abs=1e-4)
    assert figures["metrics"]["Clustering"] == figures["tasks"]["TwentyNewsgroupsClustering"]["score"]


def test_two_ranks_score_as_one_and_share_the_texts(alone, hub, model_folder, spawn, tmp_path):
    first, second = spawn(2, on_a_rank, model_folder, hub, tmp_path / "out")
    assert scores_of(first) == pytest.approx(scores_of(alone[1]), abs=1e-4)
    assert sum(second["texts"]) > 200
    assert all(one - other in (0, 1) for one, other in zip(first["texts"], second["texts"], strict=False))
    assert not second["imported"]


def test_mteb_reads_the_results(alone):
    import mteb

    out, figures = alone
    (model,) = mteb.ResultCache(out / "mteb").load_results().model_results
    assert {each.task_name: each.get_score() for each in model.task_results} == scores_of(figures)
    path, revision = figures["results"].split("/")[-2:]
    assert (model.model_name.replace("/", "__"), model.model_revision) == (path, revision)


def test_tasks_that_are_done_are_not_run_again(alone, world, hub, model_folder, monkeypatch, tmp_path):
    out, figures = alone
    shutil.copytree(out, tmp_path / "out")
    folder = tmp_path / "out" / figures["results"]
    (folder / "BIOSSES.json").unlink()
    (folder / "Ocnli.json").write_text((folder / "Ocnli.json").read_text()[:100])  # as a killed run leaves it
    loaded, load = [], benchmark.load
    monkeypatch.setattr(benchmark, "load", lambda task: (loaded.append(task.metadata.name), load(task)))
    again = run_stage(world, overrides(model_folder, hub, tmp_path / "out"))
    assert loaded == ["BIOSSES", "Ocnli"]
    assert scores_of(again) == pytest.approx(scores_of(figures), abs=1e-6)


def test_a_task_whose_data_cannot_be_read_leaves_the_others_done(world, hub, model_folder, tmp_path):
    shutil.copytree(hub / "C-MTEB", tmp_path / "hub" / "C-MTEB")
    write_set(tmp_path / "hub/mteb/biosses-sts", {"default/test": []})
    write_set(tmp_path / "hub/mteb/summeval", {"default/train": [{"text": "a"}]})
    with pytest.raises(
        ValueError, match=r"^BIOSSES: .*hub/mteb/biosses-sts cannot be read: .*test.jsonl is empty \(and 1 more\); 1 of 3 tasks"
    ) as told:
        run_stage(world, overrides(model_folder, tmp_path / "hub", tmp_path / "out", ["BIOSSES", "SummEval", "Ocnli"]))
    assert "\n" not in str(told.value)
    assert [path.name for path in (tmp_path / "out").rglob("Ocnli.json")] == ["Ocnli.json"]


def asked(*tasks: str, types: Any = (), languages: Any = (), folder: str | None = None) -> Benchmark:
    return Benchmark(tasks, types, languages, folder, ["Retrieval"], ["*ArguAna*", "*Quora*"])


def names_of(tasks: list[Any]) -> list[str]:
    return [task.metadata.name for task in tasks]


def takes_instruction(task: Any, given: Benchmark) -> bool:
    return benchmark.takes_instruction(task.metadata.name, task.metadata.type, given)


def test_c_mteb_has_its_31_tasks_of_which_12_take_the_instruction():
    from bgetrain.target import call

    config = run_config("data=c-mteb")
    source = call(config["data"])
    tasks = chosen(source.benchmark)
    kinds = [task.metadata.type for task in tasks]
    # C-Pack, arXiv:2309.07597, Table 1, without the four sets of several languages
    counts = {"Retrieval": 8, "STS": 7, "PairClassification": 2, "Classification": 6, "Reranking": 4, "Clustering": 4}
    assert {kind: kinds.count(kind) for kind in kinds} == counts
    assert len(set(names_of(tasks))) == 31
    instructed = [each for each in tasks if takes_instruction(each, source.benchmark)]
    assert names_of(instructed) == [
        *("T2Retrieval", "MMarcoRetrieval", "DuRetrieval", "CovidRetrieval", "CmedqaRetrieval", "EcomRetrieval"),
        *("MedicalRetrieval", "VideoRetrieval", "T2Reranking", "MMarcoReranking", "CMedQAv1-reranking", "CMedQAv2-reranking"),
    ]  # FlagEmbedding C_MTEB/eval_C-MTEB.py
    assert source.query_instruction == "为这个句子生成表示以用于检索相关文章："


def run_config(*words: str) -> Any:
    from omegaconf import OmegaConf

    from bgetrain import config

    return OmegaConf.to_container(config.compose(["stage=evaluate", *words]), resolve=True)


def test_the_english_tasks_that_take_the_instruction_are_those_of_bge():
    from bgetrain.target import call

    source = call(run_config("data=mteb")["data"])
    tasks = chosen(source.benchmark)
    assert len(tasks) == 56
    instructed = {each.metadata.name for each in tasks if takes_instruction(each, source.benchmark)}
    assert instructed == {
        *("CQADupstackRetrieval", "Touche2020", "SciFact", "TRECCOVID", "NQ", "NFCorpus", "MSMARCO", "HotpotQA"),
        *("FiQA2018", "FEVER", "DBPedia", "ClimateFEVER", "SCIDOCS"),
    }  # FlagEmbedding C_MTEB/eval_MTEB.py
    (quora,) = [task for task in tasks if task.metadata.name == "QuoraRetrieval"]
    assert quora.metadata.type == "Retrieval"


def test_names_types_and_languages_choose_tasks():
    assert names_of(chosen(asked("mteb(cmn,v1)", "SciFact", types=["Retrieval"])))[-2:] == ["VideoRetrieval", "SciFact"]
    (several,) = chosen(asked("STS22", languages=["cmn"]))
    assert several.hf_subsets == ["zh"]
    assert names_of(chosen(asked("MTEB(eng, v1)", types=["Summarization"]))) == ["SummEval"]
    every = chosen(asked(types=["Summarization"], languages=["eng"]))
    assert {"SummEvalSummarization.v2"} <= set(names_of(every))
    assert all(task.metadata.type == "Summarization" for task in every)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (asked("SciFact", languages=["english"]), "data.languages=\\['english'\\].*ISO 639-3"),
        (asked("SciFact", types=["STS"]), "leave no task of data.tasks"),
        (asked("CIFAR10"), "data.tasks has CIFAR10, which is of image"),
        (
            asked("SciFact", "CQADupstackRetrieval", folder="/none"),
            "data.folder=/none has no mteb/scifact, which SciFact reads, nor .* and 7 more: /none/mteb/scifact is no folder; "
            "fetch it with: hf download --repo-type dataset mteb/scifact --revision [0-9a-f]{40} --local-dir /none/mteb/scifact$",
        ),
    ],
    ids=["language", "nothing", "images", "folder"],
)
def test_what_cannot_be_meant_is_told_in_one_line(given, line):
    with pytest.raises(ValueError, match=line) as told:
        chosen(given)
    assert "\n" not in str(told.value)


def test_every_name_of_mteb_is_known_without_importing_it():
    import mteb
    from mteb.get_tasks import TASK_LIST

    names = [task.metadata.name for task in TASK_LIST] + [each.name for each in mteb.get_benchmarks()]
    mteb_names.check([*names, "C-MTEB", "mteb(cmn,v1)"])
    assert len(mteb_names.quick(mteb_names.installed())) > 0.9 * len(names)  # a typo alone reads thousands of files


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.tasks=[ScFact]"], "data.tasks has 'ScFact', which is no task and no benchmark of mteb; did you mean SciFact or"),
        (["data.tasks=['MTEB(cmm, v1)']"], "no benchmark of mteb; did you mean MTEB\\(cmn, v1\\)"),
        (["data.types=[Retreival]"], "data.types must be a list, each item Retrieval or STS or .*, got \\['Retreival'\\]"),
        (["data.tasks=[]"], "data.tasks=\\[\\] with data.types=\\[\\] names no task"),
        (["evaluate.bm25=true"], "evaluate.bm25=true has no effect on tasks of mteb"),
        (["evaluate.compare=x"], "evaluate.compare has no effect on tasks of mteb"),
    ],
    ids=["task", "benchmark", "type", "none", "bm25", "compare"],
)
def test_a_typo_is_told_before_anything_is_started(words, line):
    with pytest.raises(ValueError, match=line):
        run_config("data=mteb", *words)


def test_a_missing_package_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(mteb_names, "installed", lambda: None)
    with pytest.raises(ValueError, match="data=mteb needs the package mteb, which is not installed: pip install 'bgetrain"):
        run_config("data=mteb")


def test_means_are_over_tasks_over_types_and_of_each_type_in_order():
    given = [("a", "STS", 0.2), ("b", "Clustering", 0.5), ("c", "STS", 0.4), ("d", "Retrieval", 0.7)]
    found = averages([Score(name, kind, "x", value) for name, kind, value in given])
    assert list(found) == ["mean_task", "mean_type", "Retrieval", "STS", "Clustering"]
    assert found == pytest.approx({"mean_task": 0.45, "mean_type": 0.5, "Retrieval": 0.7, "STS": 0.3, "Clustering": 0.5})
    undefined = averages([Score("a", "STS", "x", float("nan")), Score("b", "Retrieval", "x", 0.5)])
    assert undefined == {"Retrieval": 0.5}
    assert np.isfinite(list(undefined.values())).all()
