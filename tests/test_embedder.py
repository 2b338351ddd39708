"""`Embedder`: vectors as plain transformers gives them, FlagModel's names, and what goes wrong in one line."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, sentence

import bgetrain
from bgetrain import encoding
from bgetrain.logger import console

TEXTS = [sentence(seed, 60) for seed in range(40)] + ["", "ban", " ".join(WORDS * 3)]


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory) -> Path:
    """`model_folder` with sentence-transformers' files: mean pooling, 48 tokens, prompts."""
    path = tmp_path_factory.mktemp("embedder") / "model"
    shutil.copytree(model_folder, path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    prompts = '{"prompts": {"query": "fist gun ", "document": ""}}'
    (path / "config_sentence_transformers.json").write_text(prompts)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return bgetrain.Embedder(folder, devices="cpu")


@pytest.fixture(scope="module")
def plain(folder):
    """texts, max_len -> [N, 32] of length 1: one text at a time through plain transformers, mean of all tokens."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(texts, max_len=48):
        rows = []
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=max_len, return_tensors="pt")
            with torch.no_grad():
                rows.append(encoder(**ids).last_hidden_state[0].mean(0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()

    return embed


def close(one, other, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=tolerance, rtol=0)


def test_vectors_are_those_of_plain_transformers_in_the_order_of_the_texts(model, plain, monkeypatch):
    expected = plain(TEXTS)
    assert (expected @ expected.T).min() < 0.9, "texts that all look alike would show nothing"
    found = model.encode(TEXTS)
    assert found.dtype == np.float32
    close(found, expected)
    close(model.encode(TEXTS, batch_size=1), expected)  # 64 tokens at once
    monkeypatch.setattr(encoding, "LETTERS", 200)  # many pieces, some of one text
    close(model.encode(TEXTS), expected)
    assert not np.allclose(model.encode(TEXTS, max_length=16), expected, atol=1e-3)
    close(model.encode(TEXTS, max_length=16), plain(TEXTS, 16))


def test_one_text_gives_one_vector_and_none_give_none(model, plain):
    close(model.encode("ban bur"), plain(["ban bur"])[0])
    assert model.encode("ban bur").shape == (32,)
    assert model.encode_queries("ban").shape == model.encode_corpus("ban").shape == (32,)
    assert model.encode([]).shape == (0, 32)
    tensor = model.encode(np.array(["ban", "bur"]), convert_to_numpy=False)
    assert isinstance(tensor, torch.Tensor)
    close(tensor, plain(["ban", "bur"]))


def test_instructions_are_the_folders_or_the_given_ones(folder, model, plain):
    close(model.encode_queries(["ban"]), plain(["fist gun ban"]))
    close(model.encode_corpus(["ban"]), plain(["ban"]))
    close(model.encode(["ban"]), plain(["ban"]))
    given = bgetrain.Embedder(
        folder,
        query_instruction_for_retrieval="kin",
        query_instruction_format="{}\\n{} bur",
        passage_instruction_for_retrieval="dor ",
    )
    close(given.encode_queries("ban"), plain(["kin ban bur"])[0])
    close(given.encode_corpus(["ban"]), plain(["dor ban"]))
    close(given.encode(["ban"], instruction="lun "), plain(["lun ban"]))
    close(bgetrain.Embedder(folder, query_instruction_for_retrieval="").encode_queries(["ban"]), plain(["ban"]))


def test_vectors_can_keep_their_lengths_and_be_cut_short(folder, plain):
    kept = bgetrain.Embedder(folder, normalize_embeddings=False).encode(TEXTS)
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    assert abs(lengths - 1).min() > 0.1
    close(kept / lengths, plain(TEXTS))
    short = bgetrain.Embedder(folder, truncate_dim=8)
    expected = plain(TEXTS)[:, :8]
    close(short.encode(TEXTS), expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert short.encode([]).shape == (0, 8)
    close(bgetrain.Embedder(folder, truncate_dim=8, normalize_embeddings=False).encode(TEXTS), kept[:, :8])


def test_pooling_length_and_precision_are_said_or_the_folders(folder, model_folder):
    model = bgetrain.Embedder(folder, use_fp16=True, use_bf16=False, devices=["cpu"])
    assert model.precision == "fp32"  # as FlagModel does on a CPU
    assert {each.dtype for each in model.model.parameters()} == {torch.float32}
    assert "fp32 on cpu" in repr(model)
    assert (model.query_max_length, model.passage_max_length) == (48, 48)
    assert bgetrain.Embedder(model_folder).passage_max_length == 64  # FlagModel's 512, but for the positions
    coarse = bgetrain.Embedder(folder, use_bf16=True, pooling_method="cls").encode(TEXTS)
    fine = bgetrain.Embedder(folder, pooling_method="cls").encode(TEXTS)
    assert 0.999 < (coarse * fine).sum(1).min() < 0.99999
    assert (fine * model.encode(TEXTS)).sum(1).min() < 0.99


def test_vectors_are_cut_where_the_folder_says_and_no_argument_does(folder, plain, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "config_sentence_transformers.json").write_text('{"truncate_dim": 8}')
    expected = plain(TEXTS)[:, :8]
    close(bgetrain.Embedder(model).encode(TEXTS), expected / np.linalg.norm(expected, axis=1, keepdims=True))
    close(bgetrain.Embedder(model, truncate_dim=32).encode(TEXTS), plain(TEXTS))
    (model / "config_sentence_transformers.json").write_text('{"truncate_dim": "8"}')
    with pytest.raises(ValueError, match="truncate_dim must be above 0 or null, got '8'"):
        bgetrain.Embedder(model)


def test_the_random_numbers_of_the_caller_go_on_as_without_it(folder):
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    bgetrain.Embedder(folder, devices="cpu")
    assert torch.equal(torch.rand(2), expected)


README = """
sentences_1 = ["样例数据-1", "样例数据-2"]
sentences_2 = ["样例数据-3", "样例数据-4"]
model = FlagModel('BAAI/bge-large-zh-v1.5',
                  query_instruction_for_retrieval="为这个句子生成表示以用于检索相关文章：",
                  use_fp16=True) # Setting use_fp16 to True speeds up computation with a slight performance degradation
embeddings_1 = model.encode(sentences_1)
embeddings_2 = model.encode(sentences_2)
similarity = embeddings_1 @ embeddings_2.T
print(similarity)

# for s2p(short query to long passage) retrieval task, suggest to use encode_queries() which will automatically add the instruction to each query
# corpus in retrieval task can still use encode_corpus(), since they don't need instruction
queries = ['query_1', 'query_2']
passages = ["样例文档-1", "样例文档-2"]
q_embeddings = model.encode_queries(queries)
p_embeddings = model.encode_corpus(passages)
scores = q_embeddings @ p_embeddings.T
print(scores)
"""  # noqa: E501 (FlagEmbedding, examples/inference/embedder/README.md, "Normal Model", without devices=['cuda:1'])


def hub_cache(folder: Path, cache: Path, name: str) -> None:
    """Lays a model where huggingface_hub keeps what it has downloaded."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0" * 40)


def test_the_readme_of_flagembedding_runs_with_the_import_changed(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    hub_cache(folder, tmp_path, "BAAI/bge-large-zh-v1.5")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec("from bgetrain import Embedder as FlagModel\n" + README, found)
        automatic = README.replace("FlagModel(", "FlagAutoModel.from_finetuned(")
        exec("from bgetrain import Embedder as FlagAutoModel\n" + automatic, found)
    assert found["similarity"].shape == found["scores"].shape == (2, 2)
    reference = bgetrain.Embedder(folder)
    close(found["embeddings_1"], reference.encode(found["sentences_1"]))
    close(found["q_embeddings"], reference.encode(["为这个句子生成表示以用于检索相关文章：" + each for each in found["queries"]]))


def test_a_model_of_the_hub_is_kept_in_cache_dir(folder, tmp_path):
    hub_cache(folder, tmp_path, "some/model")
    close(bgetrain.Embedder("some/model", cache_dir=str(tmp_path)).encode("ban"), bgetrain.Embedder(folder).encode("ban"))
    with pytest.raises(ValueError, match="model_name_or_path=some/model: no local folder, and cannot be reached") as caught:
        bgetrain.Embedder("some/model", cache_dir=str(tmp_path / "other"))
    assert "\n" not in str(caught.value)
    assert "model=tiny" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name_or_path": "/nowhere/model"}, "model_name_or_path=/nowhere/model: there is no such folder"),
        ({"model_name_or_path": ""}, "model_name_or_path must be a folder or a hub id, got ''"),
        ({"devices": "cuda:97"}, "devices: there is no cuda:97 here: "),
        ({"devices": "gpu"}, "devices: 'gpu' is no device: name it such as 'cuda:0'"),
        ({"devices": []}, r"devices=\[\]: name at least one"),
        ({"pooling_method": "max"}, "pooling_method must be cls, mean or last, or None for the folder's own, got 'max'"),
        ({"batch_size": 0}, "batch_size must be a whole number above 0, got 0"),
        ({"batch_tokens": True}, "batch_tokens must be a whole number above 0, got True"),
        ({"truncate_dim": 33}, "truncate_dim=33: vectors of this model have 32 numbers"),
        ({"passage_max_length": 512}, "passage_max_length=512: this model takes from 3 to 64 tokens"),
        ({"query_max_length": 2}, "query_max_length=2: this model takes from 3 to 64 tokens"),
        ({"query_instruction_format": "{1}{0}"}, "query_instruction_format='{1}{0}' needs query_instruction_for_retrieval"),
        ({"query_instruction_format": "{}"}, "query_instruction_format='{}': must have a place for the instruction and one"),
        ({"passage_instruction_format": "{}{}{}"}, "passage_instruction_format='{}{}{}': must be such as '{}{}'"),
    ],
)
def test_what_the_constructor_refuses_is_said_in_one_line(folder, arguments, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")) as caught:
        bgetrain.Embedder(**{"model_name_or_path": folder, **arguments})
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_refused_in_one_line(tmp_path, folder):
    with pytest.raises(ValueError, match=r"model_name_or_path=.*: this folder has no config.json, so it is no model") as caught:
        bgetrain.Embedder(tmp_path)
    assert "\n" not in str(caught.value)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"model_name_or_path=.*: cannot be loaded") as caught:
        bgetrain.Embedder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["ban", None], r"sentences\[1\] must be a text, got NoneType 'None'"),
        (["ban", float("nan")], r"sentences\[1\] must be a text, got float 'nan'"),
        (None, "sentences must be a text or a list of texts, got NoneType"),
        (b"ban", "sentences must be a text or a list of texts, got bytes"),
        ({"text": "ban"}, "sentences must be a text or a list of texts, got dict"),
        (["ban", "a long one", "\ud800"], r"sentences\[2\] has half a surrogate pair"),
    ],
)
def test_what_is_no_text_is_named(model, sentences, message):
    with pytest.raises(ValueError, match=message):
        model.encode(sentences)


def test_an_embedding_that_is_not_finite_is_named(folder):
    model = bgetrain.Embedder(folder)
    word = model.tokenizer.convert_tokens_to_ids(model.tokenizer.tokenize("kin")[0])
    with torch.no_grad():
        model.model.embeddings.word_embeddings.weight[word] = torch.inf
    with pytest.raises(ValueError, match=r"the embedding of sentences\[1\] is not finite$"):
        model.encode(["ban bur best lun", "kin", "dor"])


def test_out_of_memory_halves_the_budget_for_good_and_the_work_goes_on(folder, plain, monkeypatch, capsys):
    model = bgetrain.Embedder(folder, batch_tokens=4096)
    module, sizes = model._local.encoder.module, []
    inner = module.forward

    def small(seeds, ids, other):
        sizes.append(ids.numel())
        if ids.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return inner(seeds, ids, other)

    monkeypatch.setattr(module, "forward", small)
    close(model.encode(TEXTS), plain(TEXTS))
    assert max(sizes) > 600
    failed = [size for size in sizes if size > 300]
    assert 2 <= len(failed) <= 3
    assert "encode: memory ran out on cpu: " in capsys.readouterr().err
    sizes.clear()
    model.encode(TEXTS)
    assert max(sizes) <= 300  # it remembers
    monkeypatch.setattr(module, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("[enforce fail] can't allocate memory")))
    with pytest.raises(ValueError, match="cpu: too little memory for one text of 5 tokens: set a smaller max_length"):
        model.encode(["ban bur"])


def test_long_inputs_show_how_far_they_are(model, monkeypatch):
    told = []

    class Track:
        def __init__(self, description, total):
            told.append([description, total])

        def __enter__(self):
            return told[-1].append

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(console, "track", Track)
    model.encode(TEXTS, batch_size=len(TEXTS) + 1)
    assert told == []
    model.encode(TEXTS, batch_size=4)
    description, total, *steps = told[0]
    assert (description, total, sum(steps)) == ("encode", len(TEXTS), len(TEXTS))
    assert len(steps) > 3


def test_processes_share_the_texts_and_end(folder, plain, monkeypatch, nap):
    monkeypatch.setattr(encoding, "PIECES", 10)
    before = torch.get_num_threads()
    with bgetrain.Embedder(folder, devices=["cpu", "cpu"], batch_size=8) as model:
        model.encode(TEXTS[:7])
        assert model._workers == []  # seven texts are not worth a process
        many = TEXTS * 6
        from_workers = []
        answers = encoding.answers
        monkeypatch.setattr(
            encoding, "answers", lambda *given: (from_workers.append(len(each[0])) or each for each in answers(*given))
        )
        real, held = encoding.embedded, []

        def waiting(*given):  # until the other process has done something: it takes seconds to start
            for each in real(*given):
                while not from_workers and len(held) < 6000:
                    held.append(time.sleep(0.01))
                yield each

        monkeypatch.setattr(encoding, "embedded", waiting)
        found = model.encode(many, convert_to_numpy=False)
        assert 0 < sum(from_workers) < len(many)
        close(found, np.tile(plain(TEXTS), (6, 1)))
        close(model.encode_queries(TEXTS[:9]), plain(["fist gun " + text for text in TEXTS[:9]]))
        process = model._workers[0].process
        process.kill()
        process.wait()
        with pytest.raises(RuntimeError, match=r"^the process of cpu ended with status -9; if memory ran out, .*$"):
            model.encode(many)
        assert model._workers == []
        failing = {
            "refuse": (ValueError, "^no such folder$"),
            "crash": (RuntimeError, r"^the process of cpu crashed: KeyError: 7 \(nap"),
        }
        for name, (kind, message) in failing.items():
            broken = encoding.crew.start("cpu", f"nap:{name}", nap)
            model._workers.append(broken)
            with pytest.raises(kind, match=message) as caught:
                model.encode(many)
            assert "\n" not in str(caught.value)
            assert broken.process.poll() is not None
        sleeper = encoding.crew.start("cpu", "nap:sleep", nap)
        model._workers.append(sleeper)
        while not Path(nap).exists():
            time.sleep(0.01)
        monkeypatch.setattr(encoding, "embedded", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.encode(many)
        assert sleeper.process.poll() is not None
    assert torch.get_num_threads() == before


@pytest.fixture
def nap(tmp_path, monkeypatch) -> str:
    """A job for a worker that ends in a minute, and one that waits to be told something; both leave a file."""
    code = """
        import pathlib, time
        def sleep(connection, job):
            pathlib.Path(job).touch()
            time.sleep(60)
        def wait(connection, job):
            pathlib.Path(job).touch()
            connection.recv()
        def refuse(connection, job):
            raise ValueError("no such folder")
        def crash(connection, job):
            raise KeyError(7)
    """
    (tmp_path / "nap.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(bgetrain.__file__).parents[1])]))
    return str(tmp_path / "here")


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "1 / 0", "os.kill(os.getpid(), 9)"])
def test_the_processes_of_a_script_end_with_it_and_do_not_run_it_again(nap, tmp_path, end):
    script = f"""
        import os, pathlib, sys, time, weakref
        from bgetrain.cluster import crew
        class Holder: pass
        holder, workers = Holder(), [crew.start("cpu", "nap:{"wait" if "kill" in end else "sleep"}", {nap!r})]
        weakref.finalize(holder, crew.stop, workers)
        while not pathlib.Path({nap!r}).exists():
            time.sleep(0.01)
        print(workers[0].process.pid, flush=True)
        {end}
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    (pid,) = done.stdout.split()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
    assert "crew" not in done.stderr


def test_importing_the_package_is_light_and_the_stub_says_what_it_has():
    code = "import bgetrain, sys; assert 'torch' not in sys.modules; assert 'Embedder' in bgetrain.__all__; bgetrain.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(bgetrain.__file__).parents[1])
    assert done.stderr.strip().endswith("AttributeError: module 'bgetrain' has no attribute 'nothing'")
    stub = Path(bgetrain.__file__).with_suffix(".pyi").read_text()
    assert f"__all__ = {bgetrain.__all__}".replace("'", '"') in stub
    assert bgetrain.Embedder.__module__ == "bgetrain.embedder"
