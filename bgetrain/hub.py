"""Whether the Hugging Face hub answers, asked once: its libraries would try five times for each file, half a minute in all."""

import queue
import ssl
import sys
import threading
import urllib.error
import urllib.request
from functools import cache

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
