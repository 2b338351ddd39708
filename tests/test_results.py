"""scripts/results.py: the page of results comes from the files of runs, and says when it does not."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/results.py"
METRICS = {"ndcg@10": 0.48211, "mrr@10": 0.42571, "recall@100": 0.89771}
INTERVALS = {"ndcg@10": [0.47, 0.49], "mrr@10": [0.4, 0.44], "recall@100": [0.88, 0.9]}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finished(folder: Path, result: dict, seed: int = 7) -> Path:
    """The files of a run that the page needs; of a recipe `result.json` alone."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"status": "done", **result}))
    if "ladder" not in result:
        (folder / "config.yaml").write_text(f"seed: {seed}\nmodel: {{path: M}}\ndata: {{split: test}}\n")
        (folder / "provenance.json").write_text(json.dumps({"git": "0123456789abcdef", "packages": {"bgetrain": "0.1"}}))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[str]:
    own = {"metrics": METRICS, "intervals": INTERVALS, "queries": 1200, "passages": 3}
    bm25 = {name: value / 2 for name, value in METRICS.items()}
    evaluated = {"stage": "evaluate", **own, "sets": {"nq": {**own, "bm25": bm25}}}
    ladder = [{"step": "finetune", **METRICS}]
    recipe = {"stage": "recipe quickstart", "ladder": ladder, "steps": {"evaluate-finetune": evaluated}}
    finished(tmp_path / "runs/whole", recipe)
    finished(tmp_path / "runs/whole/evaluate-finetune", evaluated, seed=11)
    return [str(tmp_path / "runs/whole"), str(finished(tmp_path / "runs/alone", evaluated))]


def test_every_number_of_the_page_stands_in_the_file_that_it_leads_to(script, runs, tmp_path):
    docs = tmp_path / "docs"
    script.main(["--docs", str(docs), "add", *runs])
    script.main(["--docs", str(docs), "write"])
    shutil.rmtree(tmp_path / "runs")  # what the page rests on is kept
    script.main(["--docs", str(docs), "check"])
    page = (docs / "results.md").read_text()
    assert "| finetune | [0.4821](results/whole/evaluate-finetune/result.json) ±0.0100 | " in page
    assert (
        "| [11](results/whole/evaluate-finetune/config.yaml) | [0123456](results/whole/evaluate-finetune/provenance.json) |"
        in page
    )
    assert "| BM25 | nq | [0.2411](results/alone/result.json) | " in page
    assert "`bgetrain recipe=quickstart`" in page
    links = re.findall(r"\[([\d.]+)\]\(([^)]*result\.json)\)", page)
    assert len(links) == 9
    for shown, target in links:
        values = re.findall(r": (0\.\d+)", (docs / target).read_text())
        assert shown in {f"{float(value):.4f}" for value in values}


def test_a_page_that_was_edited_or_lacks_a_run_is_told(script, runs, tmp_path):
    docs = tmp_path / "docs"
    script.main(["--docs", str(docs), "add", runs[0]])
    with pytest.raises(SystemExit, match=r"results.md is not what .*results gives: python scripts/results.py write"):
        script.main(["--docs", str(docs), "check"])
    script.main(["--docs", str(docs), "write"])
    page = docs / "results.md"
    page.write_text(page.read_text().replace("0.4821", "0.5821"))
    with pytest.raises(SystemExit, match="is not what"):
        script.main(["--docs", str(docs), "check"])
    script.main(["--docs", str(docs), "write"])
    script.main(["--docs", str(docs), "add", runs[1]])
    with pytest.raises(SystemExit, match="is not what"):
        script.main(["--docs", str(docs), "check"])


def test_a_run_without_figures_is_refused(script, tmp_path):
    with pytest.raises(SystemExit, match=r"no result.json in it"):
        script.main(["--docs", str(tmp_path), "add", str(tmp_path)])
    folder = finished(tmp_path / "mined", {"stage": "mine", "rows": 3})
    with pytest.raises(SystemExit, match="mine has no figures of retrieval"):
        script.main(["--docs", str(tmp_path), "add", str(folder)])


def test_the_page_of_this_project_is_what_its_files_give(script):
    script.main(["check"])
