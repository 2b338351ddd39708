"""Plans that several tests draw from."""

from bgetrain.data.plan import Plan, Stream


def single(num_rows: int, global_batch: int, seed: int) -> Plan:
    """The plan of one source."""
    return Plan([Stream(num_rows, global_batch, 1.0)], seed)
