"""The Hugging Face hub: whether it answers, asked once, for its libraries would try half a minute; and uploads to it."""

import queue
import ssl
import sys
import threading
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import NamedTuple

SILENT = "it does not answer, or HF_HUB_OFFLINE is set"
SECONDS = 8.0  # longest wait for the first answer


def settle() -> bool:
    """Goes offline for this process, as HF_HUB_OFFLINE=1 does, where the hub does not answer.

    What was downloaded before still loads; the rest is refused at once.

    Returns:
        whether this process is online.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and answers(constants.ENDPOINT):
        return True
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # has a copy of its own, made at import
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return False


@cache
def answers(endpoint: str) -> bool:
    """Whether anything answers at `endpoint`, be it with an error."""
    answer: queue.Queue[bool] = queue.Queue()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS).close()
        except urllib.error.HTTPError:
            answer.put(True)
        except OSError as error:
            # a certificate that Python's own list lacks may still be in that of the hub's libraries
            answer.put(isinstance(getattr(error, "reason", None), ssl.SSLError))
        else:
            answer.put(True)

    # a thread, because a name server that is silent is not covered by the timeout
    threading.Thread(target=ask, daemon=True, name="hub").start()
    try:
        return answer.get(timeout=SECONDS)
    except queue.Empty:
        return False


class File(NamedTuple):
    """A file that would be uploaded: its path in the repository, and bytes."""

    name: str
    bytes: int


def listing(folder: Path) -> list[File]:
    """The files of a folder as `push` uploads them, sorted; hidden ones are left out."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(folder) for path in found]
    return sorted(
        File(name.as_posix(), path.stat().st_size)
        for name, path in zip(names, found, strict=True)
        if not any(part.startswith(".") for part in name.parts)
    )


def check_push(repository: str, *, online: bool) -> None:
    """Refuses what cannot be uploaded to, before anything is done for it.

    Args:
        repository: ORGANISATION/NAME.
        online: also ask whether the hub answers.

    Raises:
        ValueError: a name that the hub would refuse, or no hub.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"export.push_to={repository}: {' '.join(str(error).split())}") from error
    if repository.count("/") != 1:
        raise ValueError(f"export.push_to={repository}: give ORGANISATION/NAME, as in the address of the model on the hub")
    if online and not settle():
        raise ValueError(
            f"export.push_to={repository}: the hub cannot be reached ({SILENT}); export.dry_run=true lists what would be "
            "uploaded, export.push_to=null exports to the folder alone"
        )


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads a folder in one commit, into a repository that is made where there is none.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export by bgetrain", ignore_patterns=[".*", "*/.*"]
        )
    except (HfHubHTTPError, OSError) as error:  # among them a missing token, a refused one, a connection that broke
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"export.push_to={repository}: not uploaded ({reason}); `hf auth login` signs in, and the same command goes on"
        ) from error
    return str(done)
