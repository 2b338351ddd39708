"""Configs from elsewhere: what they cannot name, and what of the user's nobody sees."""

import ast
import sys
from pathlib import Path

import pytest
import yaml

from bgetrain import cli, config, selection, trust
from bgetrain.target import named


@pytest.fixture
def evil(tmp_path, monkeypatch) -> Path:
    """A package that leaves a mark when it is imported; returns where."""
    for name in ("evil", "trusted"):
        package = tmp_path / "packages" / name
        package.mkdir(parents=True)
        package.joinpath("__init__.py").write_text(f"open(r'{tmp_path}/{name}', 'w')\n")
        package.joinpath("made.py").write_text("from os import system\ndef make(path: str, **more): raise ValueError(path)\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delitem(sys.modules, f"{name}.made", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return tmp_path / "evil"


def refused(capfd, *arguments: str) -> str:
    assert cli.main([str(each) for each in arguments]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    return said.err.removeprefix("bgetrain: ").rstrip("\n")


ROUTES = [
    "model._target_=evil.made.make",
    "model={_target_:evil.made.make,path:x}",
    "loss._target_=evil.made.make",
    "optim._target_=evil.made.make",
    "engine._target_=evil.made.make",
    "cluster._target_=evil.made.make",
    "+logger={_target_:evil.made.make}",
    "+engine.own={list:[{_target_:evil.made.make}]}",
    "data.columns={query:{_target_:evil.made.make}}",
]


@pytest.mark.parametrize("route", ROUTES)
def test_no_key_reaches_code_outside_the_package_nor_imports_it(route, evil, capfd):
    line = refused(capfd, "stage=finetune", "data=jsonl", "data.files=[x]", route)
    assert "_target_=evil.made.make: a config may name functions of bgetrain alone" in line
    assert "set the environment variable BGETRAIN_ALLOW=evil." in line
    assert not evil.exists()


def test_nor_do_the_sources_of_a_mixture_or_the_steps_of_a_recipe(evil, tmp_path, capfd):
    for node in ("{_target_: evil.made.make}", "{data: jsonl, files: [x], _target_: evil.made.make}"):
        line = refused(capfd, "stage=finetune", "data=mixture", f"data.sources={{a: {node}}}")
        assert line.startswith("data.sources.a._target_=evil.made.make: a config may name")
    (tmp_path / "recipe.yaml").write_text("a: [stage=finetune, data=jsonl, 'data.files=[x]', model._target_=evil.made.make]\n")
    line = refused(capfd, f"recipe={tmp_path}/recipe.yaml")
    assert "step a: model._target_=evil.made.make: a config may name" in line
    assert not evil.exists()


def test_a_package_that_the_user_allows_in_the_environment_is_used_and_no_config_can_allow_one(evil, capfd, monkeypatch):
    monkeypatch.setenv("BGETRAIN_ALLOW", "other., trusted")
    config.compose(["stage=finetune", "model._target_=trusted.made.make", "model.path=x"])
    assert evil.with_name("trusted").exists(), "its signature was read"
    assert "BGETRAIN_ALLOW=evil." in refused(capfd, "stage=finetune", "model._target_=evil.made.make")
    with pytest.raises(ValueError, match="has no function 'system'"):
        config.compose(["stage=finetune", "model._target_=trusted.made.system"])
    with pytest.raises(ValueError, match="nothing reads BGETRAIN_ALLOW"):
        config.compose(["stage=finetune", "+BGETRAIN_ALLOW=evil."])


@pytest.mark.parametrize(
    "target",
    [
        "bgetrain.cluster.local.start_ranks",  # would run any command
        "bgetrain.cluster.local.launch",
        "bgetrain.cli.os.system",
        "bgetrain.output.shutil.rmtree",
        "bgetrain.engine.checkpoint.save_file",
        "bgetrain..cli.main",
        "bgetrain.${seed}",
        "system",
        "3",
        "[os.system]",
    ],
)
def test_of_bgetrain_s_own_functions_a_place_takes_those_alone_that_conf_names_there(target, capfd):
    line = refused(capfd, "stage=finetune", "data=jsonl", "data.files=[x]", f"data._target_={target}")
    assert line.startswith("data._target_=")
    assert "choose an option of conf/" in line or "a config may name" in line


def test_a_reference_cannot_bring_a_node_to_another_place():
    with pytest.raises(
        ValueError, match=r"^mine\.first\._target_=bgetrain\.cluster\.local\.launch: is not a function that can stand"
    ):
        config.compose(["stage=mine", "mine.first=${cluster}"])


def test_every_option_of_conf_may_stand_where_it_stands():
    for group in selection.groups():
        for option in selection.options(group):
            node = yaml.safe_load((selection.CONF / group / f"{option}.yaml").read_text("utf8"))
            trust.check_targets({group: node} if group != "stage" else {key: node[key] for key in node if key != "defaults"})


def test_a_name_that_is_not_the_module_s_own_does_not_resolve():
    for target in ("bgetrain.cli.os", "bgetrain.output.Path", "bgetrain.cli.nothing"):
        with pytest.raises(ValueError, match="defines no function"):
            named(target)
    with pytest.raises(ModuleNotFoundError):
        named("bgetrain.cli.os.system")


@pytest.mark.parametrize("resolver", ["oc.env:SECRET_OF_MINE", "oc.decode:x", "oc.env:A,b", "hydra:runtime.cwd", " oc.env:HOME",
                                      "oc.select:${oc.env:HOME}", "seed${oc.env:HOME}"])  # fmt: skip
def test_the_environment_and_other_resolvers_cannot_be_reached_from_a_recipe_or_an_override(
    resolver, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("SECRET_OF_MINE", "unheard")
    line = refused(capfd, "stage=finetune", f"model.path='${{{resolver}}}'")
    assert line.startswith("model.path: ${")
    assert "references are to keys of the config" in line
    (tmp_path / "recipe.yaml").write_text(f"a: [stage=finetune, \"model.path='${{{resolver}}}'\"]\n")
    line = refused(capfd, f"recipe={tmp_path}/recipe.yaml")
    assert "references are to keys of the config" in line
    assert "unheard" not in line


def test_references_to_keys_still_are_filled_in():
    cfg = config.compose(["stage=finetune", "data=jsonl", "data.files=[x]", "output_dir='out_${seed}_${loss.temperature}'"])
    assert cfg.output_dir == f"out_{cfg.seed}_{cfg.loss.temperature}"


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.system [touch made]\n", "!!python/name:os.system\n"])
def test_yaml_that_would_make_objects_is_one_line(text, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    assert "not YAML: could not determine a constructor" in refused(capfd, "recipe=recipe.yaml")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(text)
    line = refused(capfd, "stage=evaluate", "data.path=x", "output_dir=out")
    assert line == "out/config.yaml: cannot be read as YAML; choose another output_dir"
    assert not (tmp_path / "made").exists()


# --- secrets ----------------------------------------------------------------------------------------------------------

MASKED = [
    ({"db": {"passwd": "x", "credentials": {"a": "b"}}}, {"db": {"passwd": "***", "credentials": "***"}}),
    ({"api_key": "x"}, {"api_key": "***"}),
    ({"a": [{"hub_token": "x"}, {"Secret": 3}]}, {"a": [{"hub_token": "***"}, {"Secret": "***"}]}),
    ({"password": None, "key": "", "token": True}, {"password": None, "key": "", "token": True}),
    ({"chunk_tokens": "x", "keys": "y", "token_type": "z"}, {"chunk_tokens": "x", "keys": "y", "token_type": "z"}),
    ({"path": "https://me:pa55@host:80/x"}, {"path": "https://***@host:80/x"}),
    ({"path": "https://host/a@b"}, {"path": "https://host/a@b"}),
    ({"path": "s3://token@host"}, {"path": "s3://***@host"}),
    ({"note": "is hf_abcdefghijklmnopqrstuvwxyz."}, {"note": "is ***."}),
    ({"note": "is 0123456789abcdef."}, {"note": "is ***."}),
    ({"note": "abc"}, {"note": "abc"}),
]  # fmt: skip


@pytest.mark.parametrize(("cfg", "shown"), MASKED, ids=[str(each[0]) for each in MASKED])
def test_secrets_of_a_config_are_hidden_and_nothing_else(cfg, shown, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "0123456789abcdef")
    monkeypatch.setenv("WANDB_API_KEY", "abc")  # too short to be told from a word
    before = str(cfg)
    assert trust.masked(cfg) == shown
    assert trust.masked(shown) == shown
    assert str(cfg) == before


@pytest.mark.parametrize(("cfg", "shown"), MASKED, ids=[str(each[0]) for each in MASKED])
def test_the_keys_that_are_told_to_hold_secrets_are_those_that_are_hidden(cfg, shown, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "0123456789abcdef")
    assert bool(list(trust.secrets(cfg))) == (cfg != shown)


def test_a_secret_is_told_by_its_dotted_key():
    cfg = {"a": {"b": {"api_key": "x", "c": 1}, "d": ["https://me:pa55@host"]}, "e": 2}
    assert list(trust.secrets(cfg)) == ["a.b.api_key", "a.d"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("logger.api_key=abc def", "logger.api_key=*** def"),
        ("hub_token='a b' x", "hub_token=*** x"),
        ("got {api_key: abc, x: 1}", "got {api_key: ***, x: 1}"),
        ("write key=value, such as optim.lr=1e-5", "write key=value, such as optim.lr=1e-5"),
        ("model.tokenizer has no padding token: choose another", "model.tokenizer has no padding token: choose another"),
        ("chunk_tokens=5", "chunk_tokens=5"),
    ],
)
def test_secrets_of_a_line_are_hidden(text, shown):
    assert trust.masked_text(text) == shown


def test_what_is_printed_of_a_config_or_a_mistake_has_no_secret(capfd, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    given = [
        "stage=finetune",
        "+engine.api_key=hushed1",
        "model.path=https://me:hushed2@host/x",
        "output_dir=out-0123456789abcdef",
    ]
    for more in (["--cfg", "job"], ["--help"], ["--cfg", "job", "--resolve"]):
        assert cli.main([*given, *more]) == 0
        said = capfd.readouterr().out
        assert "https://***@host/x" in said
        assert not [each for each in ("hushed", "0123456789abcdef") if each in said]
    for wrong in ("logger.api_key=hushed1 x", "model.path=https://me:hushed2@host/a=b", "seed=hf_hushed3abcdefghijklmnopqrst"):
        line = refused(capfd, "stage=finetune", wrong)
        assert "hushed" not in line, line


# --- what stands nowhere in the source --------------------------------------------------------------------------------

NEVER = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
         "torch.load", "pickle.load", "pickle.loads"}  # fmt: skip
PACKAGES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "tarfile", "zipfile"}


def dangers(source: str) -> set[str]:
    """Names in a source by which data could become code, or leave its folder."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names} & PACKAGES
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} & PACKAGES
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found |= {name} & NEVER
            found |= {name} if name.endswith((".extractall", ".unpack_archive")) else set()
            for each in node.keywords:
                text = f"{each.arg}={ast.unparse(each.value)}"
                found |= {text} & {"shell=True", "allow_pickle=True", "weights_only=False", "trust_remote_code=True"}
    return found


def test_no_source_unpickles_evaluates_unpacks_or_calls_a_shell():
    assert dangers("import pickle\nx.extractall()\nsubprocess.run('a', shell=True)\neval('1')") == {
        "pickle", "x.extractall", "shell=True", "eval",
    }  # fmt: skip
    root = selection.PACKAGE.parent
    files = [*selection.PACKAGE.rglob("*.py"), *(root / "scripts").glob("*.py")]
    assert len(files) > 100
    assert {str(path): found for path in files if (found := dangers(path.read_text("utf8")))} == {}
