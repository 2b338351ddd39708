"""The objectives of masked auto-encoding against loops over tokens in double precision."""

import math

import pytest
import torch
import yaml

from bgetrain import selection
from bgetrain.loss.retromae import dupmae, mlm, retromae
from bgetrain.target import call
from bgetrain.types import Predictions, Totals

WORDS, WIDTH, TEXTS = 30, 6, 3
TOTALS = Totals(encoder=9, decoder=20, texts=4)  # more than the chunk has: other ranks hold the rest
OBJECTIVES = {
    "retromae": retromae(query="position"),
    "dupmae": dupmae(query="embedding", bag_of_words_weight=0.1, repeated="once"),
    "mlm": mlm(),
}


def made(encoder: int = 7, decoder: int = 15, words: int = 16, bag: int = 12) -> tuple[Predictions, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)

    def states(count: int) -> torch.Tensor:
        return torch.randn(count, WIDTH, generator=draw).requires_grad_()

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(WORDS, (count,), generator=draw)

    predictions = Predictions(
        states(encoder), tokens(encoder), states(decoder), tokens(decoder),
        words=states(words), word_texts=torch.arange(words) * TEXTS // max(words, 1),
        bag=tokens(bag) % 5, bag_texts=torch.arange(bag) * TEXTS // max(bag, 1), num_texts=TEXTS,
    )  # fmt: skip
    return predictions, states(WORDS), torch.randn(WORDS, generator=draw).requires_grad_()


def cross_entropy(logits: list[float], target: int) -> float:
    highest = max(logits)
    return highest + math.log(sum(math.exp(each - highest) for each in logits)) - logits[target]


def reference(predictions: Predictions, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, float]:
    """Metrics, one token at a time in Python floats."""

    def logits(states):
        return (states.double() @ weight.double().T + bias.double()).tolist()

    metrics = {}
    for name, states, targets, total in (
        ("encoder", predictions.encoder, predictions.encoder_targets, TOTALS.encoder),
        ("decoder", predictions.decoder, predictions.decoder_targets, TOTALS.decoder),
    ):
        pairs = list(zip(logits(states), targets.tolist(), strict=True))
        metrics[f"{name}_loss"] = sum(cross_entropy(row, target) for row, target in pairs) / total
        metrics[f"{name}_accuracy"] = sum(row[target] == max(row) for row, target in pairs) / total
    bag = 0.0
    for text in range(TEXTS):
        rows = logits(predictions.words[predictions.word_texts == text])
        best = [max(column) for column in zip(*rows, strict=True)]
        tokens = predictions.bag[predictions.bag_texts == text].tolist()
        bag += sum(cross_entropy(best, token) for token in set(tokens)) / len(tokens)
    return metrics | {"bag_of_words_loss": bag / TOTALS.texts}


def without_bag(predictions: Predictions) -> Predictions:
    return predictions._replace(words=None, word_texts=None, bag=None, bag_texts=None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_metrics_equal_a_loop_over_tokens(name):
    predictions, weight, bias = made()
    # a decoder that is right now and then, so that its accuracy says something
    predictions = predictions._replace(
        decoder_targets=(predictions.decoder @ weight.T + bias).argmax(1).where(torch.arange(15) % 3 > 0, 1)
    )
    expected = reference(predictions, weight, bias)
    factors = {"encoder_loss": 1.0, "decoder_loss": 1.0, "bag_of_words_loss": 0.1}
    if name != "dupmae":
        predictions = without_bag(predictions)
        del expected["bag_of_words_loss"]
    if name == "mlm":
        empty = {"decoder": predictions.decoder[:0], "decoder_targets": predictions.decoder_targets[:0]}
        predictions = predictions._replace(**empty)
        expected = {key: value for key, value in expected.items() if key.startswith("encoder")}
    loss, metrics = OBJECTIVES[name].score(predictions, weight, bias, totals=TOTALS)
    assert {key: float(value) for key, value in metrics.items()} == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(sum(factors.get(key, 0) * value for key, value in expected.items()), rel=1e-5)
    assert loss.dtype == torch.float32
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())


def test_objectives_say_what_they_need():
    assert [(each.query, each.bag_of_words) for each in OBJECTIVES.values()] == [
        ("position", False), ("embedding", True), (None, False),
    ]  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_configurations_build_their_objective(name):
    keys = yaml.safe_load((selection.PACKAGE.parent / "conf" / "loss" / f"{name}.yaml").read_text("utf8"))
    built = call(keys)
    assert (built.query, built.bag_of_words) == (OBJECTIVES[name].query, OBJECTIVES[name].bag_of_words)


def test_uneven_chunks_add_up_to_the_mean_over_all_tokens():
    predictions, weight, bias = made()
    score = OBJECTIVES["dupmae"].score
    score(predictions, weight, bias, totals=TOTALS)[0].backward()
    inputs = [predictions.encoder, predictions.decoder, predictions.words, weight, bias]
    whole = [each.grad.clone() for each in inputs]
    loss, metrics = score(predictions, weight, bias, totals=TOTALS)
    for each in inputs:
        each.grad = None
    parts = []
    first, rest = predictions.word_texts == 0, predictions.word_texts > 0
    for few, many, texts, bag in (
        (slice(0, 2), slice(0, 0), first, predictions.bag_texts == 0),
        (slice(2, 7), slice(0, 15), rest, predictions.bag_texts > 0),
    ):
        chunk = Predictions(
            predictions.encoder[few], predictions.encoder_targets[few],
            predictions.decoder[many], predictions.decoder_targets[many],
            predictions.words[texts], predictions.word_texts[texts], predictions.bag[bag], predictions.bag_texts[bag], TEXTS,
        )  # fmt: skip
        parts.append(score(chunk, weight, bias, totals=TOTALS))
        parts[-1][0].backward()
    assert sum(part[0].item() for part in parts) == pytest.approx(loss.item(), rel=1e-6)
    for key, value in metrics.items():
        assert sum(part[1][key].item() for part in parts) == pytest.approx(value.item(), rel=1e-6)
    for each, expected in zip(inputs, whole, strict=True):
        torch.testing.assert_close(each.grad, expected, rtol=1e-5, atol=1e-7)


def test_gradient_of_a_mean_of_cross_entropies_by_hand():
    predictions, weight, bias = made()
    OBJECTIVES["retromae"].score(without_bag(predictions), weight, bias, totals=TOTALS)[0].backward()
    by_bias = torch.zeros(WORDS, dtype=torch.float64)
    for states, targets, total in (
        (predictions.encoder, predictions.encoder_targets, TOTALS.encoder),
        (predictions.decoder, predictions.decoder_targets, TOTALS.decoder),
    ):
        slopes = (states.detach().double() @ weight.detach().double().T + bias.detach().double()).softmax(1)
        slopes[torch.arange(len(targets)), targets] -= 1  # (softmax - one hot) / count
        by_bias += slopes.sum(0) / total
        torch.testing.assert_close(states.grad.double(), slopes @ weight.detach().double() / total, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bias.grad.double(), by_bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("totals", [Totals(0, 0, 1), Totals(12, 12, 12)])
def test_a_chunk_without_labelled_tokens_is_zero_with_a_graph(name, totals):
    predictions, weight, bias = made(0, 0, 16, 0)
    loss, metrics = OBJECTIVES[name].score(predictions, weight, bias, totals=totals)
    assert loss.item() == 0
    assert all(value.item() == 0 for value in metrics.values())
    loss.backward()
    for each in (predictions.encoder, weight, bias):
        assert each.grad.shape == each.shape
        assert not each.grad.any()
