"""W&B's offline files, read back record by record."""

import json
import struct
import sys
from pathlib import Path

import pytest

from bgetrain.logger import wandb as logger

BLOCK, HEADER = 32768, 7  # of LevelDB's log format, which W&B's files are; the file's own header has 7 bytes as well


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path_factory):
    """No account and no settings of the person who runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def records(path: Path) -> list:
    """Reads every record: blocks of checksum, length and kind (1 whole, 2 first, 3 middle, 4 last), then bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, found, parts = path.read_bytes(), HEADER, [], b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def test_offline_run_holds_config_and_every_figure(tmp_path):
    pytest.importorskip("wandb")
    log = logger.start(str(tmp_path), {"seed": 42, "optim": {"lr": 1e-5}}, "bgetrain", "first try", "offline")
    log(1, {"loss": 1.5})
    log(1, {"evaluate/ndcg@10": 0.25})
    log(2, {"loss": 0.5})
    log.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = records(file)
    (run,) = [each.run for each in found if each.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("bgetrain", "first try")
    config = {each.key: json.loads(each.value_json) for each in run.config.update}
    assert config["seed"] == 42
    assert config["optim"] == {"lr": 1e-5}
    history = [each.history for each in found if each.WhichOneof("record_type") == "history"]
    rows = [{"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in row.item} for row in history]
    rows = [{name: value for name, value in row.items() if name not in ("_runtime", "_timestamp")} for row in rows]
    assert rows == [{"_step": 1, "loss": 1.5, "evaluate/ndcg@10": 0.25}, {"_step": 2, "loss": 0.5}]


def test_a_file_is_kept_as_an_artifact(tmp_path):
    pytest.importorskip("wandb")
    report = tmp_path / "report.html"
    report.write_text("<p>all of it</p>", "utf8")
    log = logger.start(str(tmp_path), {}, "bgetrain", None, "offline")
    log(1, {"loss": 1.5})
    log.artifact(str(report))
    log.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    requests = [each.request.log_artifact.artifact for each in records(file) if each.request.HasField("log_artifact")]
    found = requests or [each.artifact for each in records(file) if each.WhichOneof("record_type") == "artifact"]
    (kept,) = found
    assert (kept.type, kept.name) == ("report", f"report-{log.run.id}")
    (entry,) = kept.manifest.contents
    assert entry.path == "report.html"
    assert entry.size == report.stat().st_size


def test_close_waits_for_the_process_that_writes_the_file(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    calls = []

    class Stub:
        def finish(self):
            calls.append("finish")

    monkeypatch.setattr(wandb, "init", lambda **_: Stub())
    monkeypatch.setattr(wandb, "teardown", lambda: calls.append("teardown"))
    logger.start(str(tmp_path), {}, "bgetrain", None, "offline").close()
    assert calls == ["finish", "teardown"]


def test_online_start_in_the_same_folder_goes_on_with_its_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    calls = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: calls.append(arguments))
    for folder in ("a", "a", "b"):
        logger.start(str(tmp_path / folder), {}, "bgetrain", None, "online")
    first, again, other = calls
    assert first["id"] == again["id"] != other["id"]
    assert {each["resume"] for each in calls} == {"allow"}


def test_not_logged_in_is_one_line_that_names_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"^logger=wandb: No API key configured\. .*logger\.mode=offline[^\n]*$"):
        logger.start(str(tmp_path), {}, "bgetrain", None, "online")


def test_missing_package_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"^[^\n]*pip install bgetrain\[wandb\]$"):
        logger.start(str(tmp_path), {}, "bgetrain", None, "offline")
