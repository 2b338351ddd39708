"""What a user can get wrong, and the one line that says so: exit status 2, nothing on stdout, no traceback."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bgetrain import cli

GOOD = [
    {"query": f"where is fox {number}", "pos": [f"fox {number} is here"], "neg": [f"owl {number}", f"cat {number}"]}
    for number in range(8)
]


def lines(rows: list) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def refusal(capfd, *arguments: str) -> str:
    """The one line that a command is refused by."""
    status = cli.main([str(each) for each in arguments])
    said = capfd.readouterr()
    assert status == 2, said.err
    assert said.out == ""
    assert said.err.startswith("bgetrain: ")
    assert said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.err
    return said.err.removeprefix("bgetrain: ").rstrip("\n")


# --- seen in the command line alone -----------------------------------------------------------------------------------

MISTAKES = [
    # keys
    ("stage=finetune loss.temprature=0.1", "stage=finetune has no key 'loss.temprature'; did you mean loss.temperature"),
    ("stage=finetune temperature=0.1", "did you mean loss.temperature?"),
    ("stage=finetune lr=1e-5", "did you mean optim.lr?"),
    ("stage=finetune learning_rate=1e-5", "has no key 'learning_rate'; `bgetrain stage=finetune --help` lists all"),
    ("stage=finetune datas=jsonl", "did you mean data?"),
    ("stage=retromae group_size=4", "stage=retromae has no key 'group_size'"),
    ("stage=finetune from=mine", "it goes with recipe=NAME"),
    ("stage=finetune dry_run=yes", "dry_run must be given once, true or false, got yes"),
    ("stage=finetune +foo=1", "nothing reads foo in stage=finetune"),
    ("stage=finetune +optim.foo=1", "nothing reads optim.foo"),
    ("stage=finetune optim={foo: 1}", "nothing reads optim.foo"),
    ("stage=finetune +optim.lr=1", "optim.lr is there already, write it without +"),
    ("stage=finetune ~optim.lr", "~optim.lr: stage=finetune reads this key"),
    ("stage=finetune ~optim.nothing", "has no key 'optim.nothing'"),
    ("stage=finetune +engine.train_batch_size=7", "engine.train_batch_size is set by bgetrain: use global_batch"),
    ("stage=finetune stage.name=x", "stage.name cannot be set"),
    ("stage=finetune hydra.run.dir=x", "hydra.run.dir has no effect"),
    ("stage=finetune +data@hydra.callbacks=synthetic", "data has no effect"),
    # options
    ("stage=fintune", "conf/stage has no option 'fintune'; did you mean finetune?"),
    ("stage=", "valid: check, compare, doctor, evaluate, export, filter, finetune, mine, pairs, plan, report, retromae"),
    ("stage=null", "conf/stage has no option 'null'"),
    ("stage=finetune stage=pairs", "one command runs one stage"),
    ("data=jsonl", "stage is missing: add stage=NAME, one of "),
    ("stage=finetune optim=adam", "did you mean adamw?"),
    ("stage=finetune model=/my/model", "a path goes in model.path=/my/model"),
    ("stage=finetune optim=3", "conf/optim has no option '3'; valid: adamw, sgd"),
    ("stage=finetune logger=[wandb,tensorboard]", "conf/logger has no option '[wandb,tensorboard]'"),
    ("stage=finetune loss=retromae", "loss=retromae does not fit stage=finetune"),
    ("stage=finetune model=tiny model.path=x", "nothing reads model.path in stage=finetune model=tiny"),
    # values
    ("stage=finetune optim.lr=1e-5x", "optim.lr must be a number above 0, got '1e-5x'"),
    ("stage=finetune optim.lr=-1", "optim.lr must be a number above 0, got -1"),
    ("stage=finetune optim.lr=", "optim.lr must be a number above 0, got ''"),
    ("stage=finetune optim.lr=inf", "optim.lr must be a number above 0, got inf"),
    ("stage=finetune loss.temperature=0", "loss.temperature must be a number above 0, got 0"),
    ("stage=finetune loss.negatives=all", "loss.negatives must be group or rank or world, got 'all'"),
    ("stage=finetune global_batch=0", "global_batch must be a whole number above 0, got 0"),
    ("stage=finetune global_batch=-8", "global_batch must be a whole number above 0, got -8"),
    ("stage=finetune global_batch=1.5", "global_batch must be a whole number above 0, got 1.5"),
    ("stage=finetune group_size=0", "group_size must be a whole number above 0, got 0"),
    ("stage=finetune total_steps=0", "total_steps must be a whole number above 0 or null, got 0"),
    ("stage=finetune num_processes=0", "num_processes must be a whole number above 0 or null, got 0"),
    ("stage=finetune chunk_tokens=-1", "chunk_tokens must be a whole number above 0, got -1"),
    ("stage=finetune data.passage_max_len=0", "data.passage_max_len must be a whole number above 0, got 0"),
    ("stage=finetune total_steps=null epochs=null", "total_steps and epochs are both null: set one of them"),
    ("stage=finetune precision=half", "precision must be auto or fp32 or bf16 or fp16, got 'half'"),
    ("stage=finetune engine=zero0 precision=bf16", "use engine=zero1"),
    ("stage=finetune engine=zero0 precision=fp16", "use engine=zero1"),
    ("stage=finetune loss.negatives=group group_size=1", "leaves a query no negative: use group_size=2 or more"),
    ("stage=finetune loss.negatives=group loss.directions=both", "needs other queries, and loss.negatives=group has none"),
    ("stage=finetune loss.teacher=group group_size=1", "group_size=1 has one: use 2 or more"),
    ("stage=finetune memory_limit=2 step_mode=single", "memory_limit is read by step_mode=auto alone, and step_mode is single"),
    ("stage=finetune global_batch=1 group_size=1", "leaves a query no negative: raise one of them"),
    ("stage=finetune loss.contrastive_weight=0", "leaves nothing to train on"),
    ("stage=finetune loss.temperature=0.005 loss.learnable_temperature=true", "loss.temperature=0.005 is below 0.01"),
    ("stage=finetune loss.mask_margin=-3", "loss.mask_margin=-3 must be from -2 to 2"),
    ("stage=finetune guide_model=x", "guide_model=x judges nothing: set loss.mask_margin"),
    ("stage=finetune loss.matryoshka=[8,16] loss.matryoshka_weights=[1]", "must give one weight for each"),
    ("stage=finetune loss.matryoshka=[8,8]", "names a width twice"),
    ("stage=finetune loss.matryoshka=[0]", "loss.matryoshka must be a list, each item a whole number above 0"),
    ("stage=finetune memory_limit=-1", "memory_limit must be a number above 0 or null"),
    ("stage=finetune model.gradient_checkpointing=1", "model.gradient_checkpointing must be true or false, got 1"),
    ("stage=finetune model.lora=0", "model.lora must be a whole number above 0 or null, got 0"),
    ("stage=finetune model.lora=8 model.lora_scale=0", "model.lora_scale must be a number above 0, got 0"),
    ("stage=finetune model=tiny model.lora=8", "stage=finetune has no key 'model.lora'"),
    (
        "stage=retromae model=pretrained model.path=x model.lora=8",
        "model.lora=8 trains adapters, which stage=retromae does not: use stage=pairs or stage=finetune, or model.lora=null",
    ),
    ("stage=finetune model.dropout=2", "model.dropout must be a number from 0 to 1 or null, got 2"),
    ("stage=finetune model.path=123", "model.path must be text, got 123; quotes make it text: 'model.path=\"123\"'"),
    ("stage=finetune output_dir=", "output_dir is empty"),
    ("stage=finetune resume=yes", "resume must be auto or force or never, got 'yes'"),
    ("stage=finetune data=jsonl", "data.files is missing: add data.files=VALUE, a list such as [a, b] (Rows"),
    ("stage=finetune data=jsonl data.files=a.jsonl", "data.files must be a list such as [a, b], got 'a.jsonl'"),
    ("stage=evaluate", "data.path is missing: add data.path=VALUE, text or a list such as [a, b] (A folder in BEIR layout"),
    ("stage=mine mine.first=5 mine.last=3", "mine.first=5 must be below mine.last=3"),
    ("stage=mine mine.min_score=0.5 mine.max_score=0.5", "mine.min_score=0.5 must be below mine.max_score=0.5"),
    ("stage=finetune optim.lr=${foo}", "optim.lr: Interpolation key 'foo' not found"),
    # grammar
    ("finetune", "cannot read 'finetune': write key=value; did you mean stage=finetune?"),
    ("quickstart", "did you mean recipe=quickstart?"),
    ("stage=finetune foo", "cannot read 'foo': write key=value"),
    ("stage=finetune =3", "'' is no key"),
    ("stage=finetune optim..lr=3", "'optim..lr' is no key"),
    ("stage=finetune model.path=a=b", "quotes: 'model.path=\"a=b\"'"),
    ("stage=finetune,pairs", "stage=finetune,pairs has several values: add -m"),
    ("stage=finetune optim.lr=1e-5,2e-5", "add -m to run each in turn"),
    # jobs
    ("stage=doctor cluster=slurm num_processes=4", "num_processes=4 is for one machine; with cluster=slurm ranks are"),
    ("stage=doctor cluster=slurm cluster.time=soon", "cluster.time=soon is no time: give minutes"),
    ("stage=doctor cluster=slurm cluster.time=2", "cluster.time=2 is over when ranks would be told to save"),
    ("stage=doctor cluster=slurm cluster.memory=many", "cluster.memory=many is no size"),
    ("stage=doctor cluster=slurm cluster.memory=0", "quotes make it text: 'cluster.memory=\"0\"'"),
    ("stage=doctor cluster=slurm cluster.environment={a-b:c}", "'a-b', which is no name of a variable"),
    ("stage=doctor cluster=slurm cluster.environment.HF_TOKEN=abc", "cluster.environment.HF_TOKEN holds a secret"),
    (
        "stage=doctor cluster=slurm cluster.container=https://me:pa55@host/x",
        "cluster.container holds a secret, which would stand in job",
    ),
    ("stage=doctor cluster=slurm cluster.setup=['a\nb']", "cluster.setup holds a line break"),
    ("stage=doctor cluster=slurm cluster.sbatch_lines=[-N2]", "'-N2', which is decided by cluster.nodes"),
    ("stage=doctor cluster=slurm cluster.sbatch_lines=['--output=x']", "decided by output_dir, where the log is"),
    ("stage=doctor cluster=slurm cluster.sbatch_lines=['--time=5']", "'--time=5', which is decided by cluster.time"),
    ("stage=doctor cluster=slurm cluster.sbatch_lines=[-pgpu]", "'-pgpu', which is decided by cluster.partition"),
    ("stage=doctor cluster=slurm cluster.sbatch_lines=['#SBATCH']", "give options of sbatch such as --mail-type=FAIL"),
    ("stage=doctor cluster=slurm cluster.container_with=docker", "cluster.container_with must be"),
    ("stage=doctor cluster=slurm cluster.nodes=0", "cluster.nodes must be"),
    # flags
    ("--stage finetune", "unknown flag --stage: keys are written key=value, without dashes"),
    ("stage=finetune --epochs=3", "without dashes: epochs=3;"),
    ("stage=finetune --foo", "unknown flag --foo"),
    ("stage=finetune --cfg", "argument --cfg/-c: expected one argument"),
    ("stage=finetune --cfg all", "argument --cfg/-c: invalid choice: 'all'"),
    ("stage=finetune --help=x", "ignored explicit argument"),
    ("stage=finetune optim.lrr=3 --help", "did you mean optim.lr?"),
    ("stage=finetune optim.lrr=3 --cfg job", "did you mean optim.lr?"),
    # recipes
    ("recipe=quickstat", "did you mean quickstart?"),
    ("recipe=quickstart dry-run=true", "did you mean dry_run?"),
    ("recipe=quickstart optim.lrr=3", "no step has a key 'optim.lrr'; did you mean optim.lr?"),
    ("recipe=quickstart output_dir=[a]", "output_dir=[a]: give a path of letters"),
]


@pytest.mark.parametrize(("typed", "said"), MISTAKES, ids=[typed for typed, _ in MISTAKES])
def test_a_mistake_in_the_command_line_is_one_line(typed, said, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = typed.replace("{foo: 1}", "{foo:1}").split(" ")
    assert said in refusal(capfd, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_one_line(capfd, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal(capfd, "stage=finetune", "num_processes=2", f"cluster.port={port}", f"output_dir={tmp_path}/out")
    assert said == f"cluster.port={port} cannot be used (Address already in use): choose another, or null for a free one"


# --- seen in the data -------------------------------------------------------------------------------------------------

DATA = [
    ("not JSON", [GOOD[0], "{'query': 1}"], "{file}:2: not JSON"),
    ("no object", [GOOD[0], GOOD[1], "[1]"], "{file}:3: must be a JSON object"),
    ("a line cut off", [GOOD[0], '{"query": "a", "po'], "{file}:2: not JSON"),
    ("no pos", [GOOD[0], {"query": "a"}], "{file}:2: "),
    ("empty pos", [GOOD[0], {"query": "a", "pos": []}], "{file}:2: "),
    ("pos a number", [{"query": "a", "pos": 3}], "{file}:1: "),
    ("blank positive", [GOOD[0], {"query": "a", "pos": [" "]}], "{file}:2: "),
    ("empty query", [GOOD[0], GOOD[1], {"query": "", "pos": ["a"]}], "{file}:3: "),
    ("blank query", [{"query": "  ", "pos": ["a"]}], "{file}:1: "),
    ("no query", [{"pos": ["a"]}], "{file}:1: "),
    ("query no text", [{"query": 3, "pos": ["a"]}], "{file}:1: "),
    ("neg a number", [GOOD[0], {"query": "a", "pos": ["b"], "neg": 3}], "{file}:2: "),
    ("nothing", [], "{file}"),
    ("empty lines only", ["", ""], "{file}"),
]


def test_the_first_run_of_a_process_prints_one_line_too(tmp_path):
    """Importing deepspeed tries the machine's compiler, whose complaints are not the user's."""
    command = [sys.executable, "-m", "bgetrain", "stage=finetune", "data=jsonl", f"data.files=[{tmp_path}/nowhere.jsonl]"]
    done = subprocess.run([*command, f"output_dir={tmp_path}/out"], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"bgetrain: data.files={tmp_path}/nowhere.jsonl: no such file or folder\n"


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What an import prints is the matter of the test above."""
    import bgetrain.engine.deepspeed  # noqa: F401


def finetune(model: Path, output: Path, *more: str) -> list[str]:
    lengths = ["data.query_max_len=16", "data.passage_max_len=16"]
    return ["stage=finetune", f"model.path={model}", "global_batch=4", "total_steps=1", *lengths, f"output_dir={output}", *more]


@pytest.mark.parametrize(("rows", "said"), [case[1:] for case in DATA], ids=[case[0] for case in DATA])
def test_a_fault_of_a_row_is_one_line_with_file_and_line(rows, said, capfd, tmp_path, model_folder):
    file = tmp_path / "train.jsonl"
    file.write_text(lines(rows))
    line = refusal(capfd, *finetune(model_folder, tmp_path / "out", "data=jsonl", f"data.files=[{file}]"))
    assert said.format(file=file) in line


def test_a_missing_file_is_one_line_and_the_mended_command_may_use_the_same_folder(capfd, tmp_path, model_folder):
    line = refusal(capfd, *finetune(model_folder, tmp_path / "out", "data=jsonl", f"data.files=[{tmp_path}/nowhere.jsonl]"))
    assert line == f"data.files={tmp_path}/nowhere.jsonl: no such file or folder"
    (tmp_path / "here.jsonl").write_text(lines([{"query": ""}]))
    line = refusal(capfd, *finetune(model_folder, tmp_path / "out", "data=jsonl", f"data.files=[{tmp_path}/here.jsonl]"))
    assert f"{tmp_path}/here.jsonl:1: " in line


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_file_missing_from_a_beir_folder_is_one_line(missing, capfd, tmp_path, model_folder, beir_folder):
    folder = shutil.copytree(beir_folder, tmp_path / "beir")
    (folder / missing).unlink()
    line = refusal(capfd, "stage=evaluate", f"model.path={model_folder}", f"data.path={folder}", f"output_dir={tmp_path}/out",
                   "data.passage_max_len=32", "data.query_max_len=32")  # fmt: skip
    assert str(folder) in line
    assert missing.partition("/")[2] or missing in line


# --- seen in the model ------------------------------------------------------------------------------------------------


@pytest.fixture
def train_file(tmp_path) -> Path:
    (tmp_path / "train.jsonl").write_text(lines(GOOD))
    return tmp_path / "train.jsonl"


@pytest.mark.parametrize("fault", ["no folder", "empty folder", "no config.json", "truncated weights", "no weights"])
def test_a_model_path_that_is_no_model_is_one_line(fault, capfd, tmp_path, model_folder, train_file):
    model = tmp_path / "model"
    if fault == "empty folder":
        model.mkdir()
    elif fault != "no folder":
        shutil.copytree(model_folder, model)
        weights = model / "model.safetensors"
        if fault == "truncated weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        else:
            (model / "config.json" if fault == "no config.json" else weights).unlink()
    line = refusal(capfd, *finetune(model, tmp_path / "out", "data=jsonl", f"data.files=[{train_file}]"))
    assert line.startswith(f"model.path={model}")


def test_lengths_beyond_the_model_are_one_line(capfd, tmp_path, model_folder, train_file):
    more = ["data=jsonl", f"data.files=[{train_file}]", "data.passage_max_len=999"]
    arguments = [each for each in finetune(model_folder, tmp_path / "out") if not each.startswith("data.passage")]
    assert refusal(capfd, *arguments, *more).startswith("data.passage_max_len=999 exceeds the 64 positions of the model")


# --- seen in the folder, and what is done about few negatives ---------------------------------------------------------


def test_few_negatives_are_stated_once_and_a_folder_of_another_config_is_refused(capfd, tmp_path, model_folder, train_file):
    arguments = finetune(model_folder, tmp_path / "out", "data=jsonl", f"data.files=[{train_file}]", "group_size=8")
    assert cli.main(arguments) == 0
    said = capfd.readouterr()
    told = [line for line in (said.out + said.err).splitlines() if "group_size=8" in line]
    assert len(told) == 1, told
    assert "repeated" in told[0]

    line = refusal(capfd, *arguments, "seed=2")
    assert line.startswith(f"output_dir={tmp_path}/out belongs to a run with seed=42, now 2: choose another output_dir, ")

    assert cli.main(arguments) == 0
    assert capfd.readouterr().out.startswith("already done: ")
    assert cli.main([*arguments, "seed=2", "resume=never"]) == 0
    assert "seed: 2" in (tmp_path / "out" / "config.yaml").read_text()
