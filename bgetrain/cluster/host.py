"""What this machine offers a launcher: devices, ports, memory."""

import ctypes
import os
import platform
import socket


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, where the C library is glibc.

    By its own rules it gives large blocks back to the system at once; a step on a CPU then spends a sixth of its time on
    having the same pages cleared again.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library, largest = ctypes.CDLL(None), 2**31 - 1
    if not library.mallopt(-3, largest):  # M_MMAP_THRESHOLD; older versions refuse more than 32 MiB
        library.mallopt(-3, 32 * 2**20)
    library.mallopt(-1, largest)  # M_TRIM_THRESHOLD
    library.mallopt(-2, 64 * 2**20)  # M_TOP_PAD


def count_devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def claimed_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "ports end at 65535"
            raise ValueError(f"cluster.port={port} cannot be used ({reason}): choose another, or null for a free one") from error
    return port
