"""The machine's measured matrix-product rate, and the operations that a step needs on real tokens alone."""

import time

from prepare import Amount

TOKENS = 4096  # rows of the products that the rate is measured with


def matmul_rate(width: int, threads: int) -> float:
    """fp32 operations per second of the model's own products.

    One layer's forward: [4096, D] times four of [D, D], one of [D, 4D]; [4096, 4D] times one of [4D, D]. The best of ten
    rounds of a fifth of a second or so: what the machine can do, not what it does while somebody else uses it.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    pairs = [(torch.randn(TOKENS, rows, generator=generator), torch.randn(rows, columns)) for rows, columns in shapes]
    outputs = [left @ right for left, right in pairs]
    operations = sum(2 * TOKENS * rows * columns for rows, columns in shapes)

    def once() -> float:
        began = time.perf_counter()
        for (left, right), output in zip(pairs, outputs, strict=True):
            torch.mm(left, right, out=output)
        return time.perf_counter() - began

    repeats = max(1, round(0.2 / once()))
    best = min(sum(once() for _ in range(repeats)) / repeats for _ in range(10))
    torch.set_num_threads(before)
    return operations / best


def operations(amount: Amount, layers: int, width: int, batch: int, group_size: int) -> dict[str, float]:
    """Floating-point operations of one step, forward and backward, without padding and without any second forward.

    products: 6 x parameters of the matrix products (12 D^2 a layer) x tokens; attention: 12 x D x L^2 a layer and text
    (scores and weighted sum, 4 L^2 D forward, twice that backward); loss: 6 x B x P x D.
    """
    passages = batch * group_size
    parts = {
        "products": 6.0 * 12 * layers * width**2 * amount.tokens,
        "attention": 12.0 * layers * width * amount.squares,
        "loss": 6.0 * batch * passages * width,
    }
    return {**parts, "all": sum(parts.values())}
