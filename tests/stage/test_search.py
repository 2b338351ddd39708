"""stage=search: what is found, what is kept, what the prompt does, on one rank and on two."""

import contextlib
import io
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from bgetrain import cli, steps

LENGTHS = ["data.query_max_len=32", "data.passage_max_len=32"]


def command(model, output, *more: str) -> list[str]:
    return ["stage=search", f"model.path={model}", *LENGTHS, f"output_dir={output}", "chunk_tokens=200", *more]


@pytest.fixture
def searched(model_folder, beir_folder, tmp_path, capfd):
    """searched(*overrides) -> the answers of a search in `beir_folder`, and what it said."""

    def run(*overrides: str, model=model_folder, data=f"data.path={beir_folder}") -> tuple[list[dict], str]:
        assert cli.main(command(model, tmp_path / "out", data, "format=json", *overrides)) == 0
        told = capfd.readouterr()
        return [json.loads(line) for line in told.out.splitlines()], told.err

    return run


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Texts of each forward pass."""
    from bgetrain.search import encode

    counted: list[int] = []
    embed = encode.embed
    monkeypatch.setattr(encode, "embed", lambda used, text, *more: counted.append(len(text.lengths)) or embed(used, text, *more))
    return counted


def reference(model: Path, texts: list[str]):
    """Unit rows by plain transformers, one text at a time, first token."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, body = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    with torch.no_grad():
        inputs = [tokenizer(text, truncation=True, max_length=32, return_tensors="pt") for text in texts]
        return torch.nn.functional.normalize(torch.cat([body(**each).last_hidden_state[:, 0] for each in inputs]))


def corpus(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]


def text_of(row: dict) -> str:
    return f"{row['title']} {row['text']}".strip()


@pytest.mark.parametrize("instruction", ["", "bor "])
def test_the_best_passages_are_those_of_plain_transformers_with_the_models_prompts(
    searched, model_folder, beir_folder, tmp_path, instruction
):
    import torch

    model = shutil.copytree(model_folder, tmp_path / "model")
    prompts = {"prompts": {"query": "kin ", "document": "ban "}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    queries, rows = ["gust lar", "dun"], corpus(beir_folder)
    own = [f"data.query_instruction='{instruction}'"] if instruction else []
    found, told = searched(f"query=[{','.join(queries)}]", "top_k=5", *own, model=model)
    scores = (
        reference(model, [(instruction or "kin ") + query for query in queries])
        @ reference(model, ["ban " + text_of(row) for row in rows]).T
    )
    for query, answer, row in zip(queries, found, scores, strict=True):
        best = row.topk(5)
        assert answer["query"] == query
        assert [each["where"] for each in answer["passages"]] == [rows[place]["_id"] for place in best.indices]
        assert [each["text"] for each in answer["passages"]] == [text_of(rows[place]) for place in best.indices]
        torch.testing.assert_close(torch.tensor([each["score"] for each in answer["passages"]]), best.values, rtol=0, atol=2e-6)
    assert f"queries begin with {(instruction or 'kin ').strip()!r}" in told


def test_a_second_search_embeds_its_query_alone_and_reads_no_passage_but_those_shown(searched, passes, monkeypatch):
    from bgetrain.search import encode

    first, told = searched("query=gust")
    assert "indexed 40 passages in " in told
    assert passes == [40, 1]
    monkeypatch.setattr(encode, "fingerprint_of", lambda texts: pytest.fail("the corpus is read"))
    again, told = searched("query=gust")
    assert again == first
    assert "40 passages, embedded before (cached in " in told
    assert passes == [40, 1, 1]
    assert len(searched("query=gust", "top_k=3")[0][0]["passages"]) == 3


def test_a_corpus_that_has_changed_is_embedded_anew_only_where_it_has(searched, passes, beir_folder, tmp_path, monkeypatch):
    from bgetrain.search import shards

    monkeypatch.setattr(shards, "BLOCK", 16)
    folder = shutil.copytree(beir_folder, tmp_path / "beir")
    (folder / "queries.jsonl").unlink()  # a corpus alone is enough
    data = f"data.path={folder}"
    searched("query=gust", data=data)
    assert passes == [16, 16, 8, 1]
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "new", "text": "gust gust"}) + "\n")
    found, told = searched("query=gust gust", data=data)
    assert passes[4:] == [9, 1]
    assert "indexed 9 new of 41 passages in " in told
    assert "new" in [each["where"] for each in found[0]["passages"]]
    kept = next((tmp_path / "out/embeddings").glob("*/*.npy"))
    kept.unlink()  # what is gone is made again
    assert searched("query=gust gust", data=data)[0] == found
    assert len(passes) == 8


def test_passages_of_rows_texts_and_mixtures_are_found_with_their_place(searched, tmp_path):
    rows = [{"query": "a", "pos": ["kin", "ban"], "neg": ["bor"]}, {"query": "b", "pos": ["ban"], "neg": ["gust", "kin"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.jsonl").write_text('{"text": "dun"}\n{"text": "lar"}\n')
    data = [f"data.files=[{tmp_path}/rows.jsonl]", "data=jsonl"]
    found, _ = searched(data[0], "query=gust", data=data[1])
    places = {each["text"]: each["where"].rpartition("/")[2] for each in found[0]["passages"]}
    assert places == {"kin": "rows.jsonl:1", "ban": "rows.jsonl:1", "bor": "rows.jsonl:1", "gust": "rows.jsonl:2"}
    assert found[0]["passages"][0]["text"] == "gust"
    found, _ = searched(f"data.files=[{tmp_path}/texts.jsonl]", "query=lar", data="data=text")
    assert [(each["text"], each["where"]) for each in found[0]["passages"]] == [("lar", "text 2"), ("dun", "text 1")]
    both = (
        f"data.sources={{a: {{data: jsonl, files: [{tmp_path}/rows.jsonl]}}, b: {{data: text, files: [{tmp_path}/texts.jsonl]}}}}"
    )
    found, _ = searched(both, "query=lar", data="data=mixture")
    assert {each["text"] for each in found[0]["passages"]} == {"kin", "ban", "bor", "gust", "dun", "lar"}
    assert found[0]["passages"][0]["where"] == "text 2"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["query=  "], "query=' ' is empty: give the words to look for, or leave query out for a prompt"),
        (["query=[]"], "query=[] lists no query"),
        (["top_q=3"], "stage=search has no key 'top_q'; did you mean top_k?"),
        (["query=a", "top_k=0"], "top_k must be a whole number above 0, got 0"),
        (["query=a", "model.path=./nowhere"], "model.path=./nowhere: there is no such folder, so it is no model"),
        (["query=a", "data.path={tmp}/empty"], "corpus.jsonl: no passages in it"),
        (["query=a", "data=synthetic"], "data=synthetic has no passages, which stage=search needs"),
        (["query=a", "cluster=slurm"], "use cluster=local"),
        ([], "no query: add query=\"...\", or hand over queries on standard input"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line(model_folder, beir_folder, tmp_path, capfd, monkeypatch, more, said):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n \n"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/corpus.jsonl").write_text("")
    more = [each.format(tmp=tmp_path) for each in more]
    given = {each.partition("=")[0]: each for each in command(model_folder, tmp_path / "out", f"data.path={beir_folder}")}
    if "data=synthetic" in more:
        del given["data.path"]
    given |= {each.partition("=")[0]: each for each in more}
    assert cli.main(list(given.values())) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("bgetrain: ")
    assert said in line


@pytest.mark.parametrize("typed", ['x[1], "it\'s" {a}', "5", "C:\\a b\\", "why?", "a=b, c=d", "文件"])
def test_a_query_is_taken_as_it_was_typed(typed):
    from bgetrain import config

    assert config.compose(["stage=search", "data.path=x", f"query={typed}"]).query == typed


def test_a_long_query_is_cut_and_that_is_said(searched):
    found, told = searched("query=" + "kin ban " * 40)
    assert "is longer than data.query_max_len=32 tokens: the rest is not looked for" in told
    assert found[0]["passages"] == searched("query=" + "kin ban " * 60)[0][0]["passages"]


def test_lines_of_standard_input_are_queries(searched, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("gust\n\n  dun lar \n"))
    assert [each["query"] for each in searched()[0]] == ["gust", "dun lar"]


@pytest.mark.parametrize("end", [":q", EOFError, KeyboardInterrupt])
def test_the_prompt_passes_over_empty_lines_and_errors_and_is_left_in_peace(monkeypatch, capsys, tmp_path, end):
    from bgetrain.stage import search

    typed = iter(["", "  ", "kin", "bad", " ban ", end, "never"])
    heard = []

    def answer(line: str) -> None:
        heard.append(line)
        if line == "bad":
            raise ValueError("cannot\nbe answered")

    def entered(prompt: str) -> str:
        line = next(typed)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("builtins.input", entered)
    monkeypatch.setattr(sys, "stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    search.converse(answer, tmp_path / "out/history")
    assert heard == ["kin", "bad", "ban"]
    assert "bgetrain: cannot be answered\n" in capsys.readouterr().err


def test_several_ranks_are_started_for_what_is_not_embedded_and_for_nothing_else(searched, monkeypatch, tmp_path):
    from bgetrain.cluster import local

    started: list[tuple[list[str], int]] = []
    monkeypatch.setattr(local, "start_ranks", lambda line, count, port: started.append((line, count)) or 0)
    _, told = searched("query=gust", "num_processes=2")
    assert [count for _, count in started] == [2]
    assert started[0][0][1:4] == ["-m", "bgetrain", "stage=search"]
    assert "indexed" not in told  # the ranks have said so
    searched("query=gust", "num_processes=2")
    assert len(started) == 1
    monkeypatch.setattr(local, "start_ranks", lambda *_: 75)
    more = [f"embeddings_cache={tmp_path}/other", "query=gust", "num_processes=2", "data.path=" + str(tmp_path)]
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "kin"}\n')
    assert cli.main(command(started[0][0][4].partition("=")[2], tmp_path / "out", *more)) == 75


def on_two_ranks(world, arguments: list[str]) -> tuple[int, str, str, int]:
    from bgetrain.search import encode, shards

    shards.BLOCK = 16
    embedded, embed = [], encode.embed
    encode.embed = lambda used, text, *more: embedded.append(len(text.lengths)) or embed(used, text, *more)
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        status = cli.main(arguments)
    return status, out.getvalue(), told.getvalue(), sum(embedded)


def test_two_ranks_share_the_embedding_and_the_first_answers_as_one_would(
    spawn, searched, model_folder, beir_folder, tmp_path, monkeypatch
):
    from bgetrain.search import shards

    arguments = command(model_folder, tmp_path / "two", f"data.path={beir_folder}", "format=json", "query=gust lar")
    first, second = spawn(2, on_two_ranks, arguments)
    assert (first[0], second[0]) == (0, 0)
    assert (first[3], second[3]) == (16 + 1, 16 + 8)  # passages of its blocks, and the query
    assert "indexed 40 passages in " in first[2]
    assert " on 2 ranks" in first[2]
    assert second[1:3] == ("", "")
    monkeypatch.setattr(shards, "BLOCK", 16)
    alone, _ = searched("query=gust lar")
    assert json.loads(first[1]) == alone[0]


def test_a_recipe_ends_with_a_command_that_searches_what_it_was_evaluated_on(
    model_folder, beir_folder, tmp_path, capsys, monkeypatch
):
    data = ["data=beir", f"data.path={beir_folder}", *LENGTHS, "data.split=test"]
    shutil.copytree(model_folder, tmp_path / "r/train here/model")
    train = steps.Step("train here", ["stage=pairs", "data=jsonl"], f"{tmp_path}/r/train here", [])
    model = f'model.path="{tmp_path}/elsewhere"'
    evaluation = ["stage=evaluate", *data, model, "model.pooling=mean", "chunk_tokens=300", "evaluate.bm25=true"]
    evaluate = steps.Step("evaluate-train", evaluation, f"{tmp_path}/r/evaluate-train", ["train here"])
    for step in (train, evaluate):
        Path(step.output_dir).mkdir(exist_ok=True)
        (Path(step.output_dir) / "result.json").write_text("{}")
    steps.report("small", f"{tmp_path}/r", [train, evaluate], None)
    program, *arguments = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    model = f'model.path="{tmp_path}/r/train here/model"'
    assert arguments == ["stage=search", model, *data[:-1], "model.pooling=mean", "chunk_tokens=300"]
    assert Path(program).name == "bgetrain"
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, "query=gust", "top_k=1"]) == 0
    assert "1 of 40 passages" in capsys.readouterr().out
    assert (tmp_path / "outputs/search/embeddings").is_dir()


def test_the_program_is_named_by_its_path_where_it_is_not_on_path(tmp_path, monkeypatch):
    script = tmp_path / ".venv/bin/bgetrain"
    script.parent.mkdir(parents=True)
    script.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin")
    assert steps.program() == ".venv/bin/bgetrain"
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin")
    assert steps.program() == "bgetrain"
