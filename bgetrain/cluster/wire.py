"""What ranks say to each other before torch is there: one line of JSON at a time."""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

LONGEST = 200_000  # characters of a message; an error takes a part of that


class Meeting(NamedTuple):
    """Where the ranks meet for good.

    Attributes:
        host: of rank 0.
        port: of the store.
        listener: on rank 0 the descriptor of a socket that listens there; None elsewhere.
    """

    host: str
    port: int
    listener: int | None


class AbandonedError(Exception):
    """Another rank has left before all had met, and has said why."""


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def heard_from(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """One message; an empty one where what comes is none.

    Raises:
        OSError: nothing came in time.
    """
    deadline, said = time.monotonic() + seconds, b""
    while not said.endswith(b"\n") and len(said) < LONGEST:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        # no more than the line, as the next message may stand behind it
        piece = connection.recv(65_536, socket.MSG_PEEK)
        if not piece:
            break
        said += connection.recv(piece.find(b"\n") + 1 or len(piece))
    try:
        message = json.loads(said)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
