"""RetroMAE's masks against literal loops over positions, words and masks, given the same draws."""

from random import Random

import numpy as np
import pytest
import torch
from retromae import (
    MASK,
    PAD,
    SIZES,
    VOCAB,
    TextDraws,
    chunk_of,
    literal_batch,
    literal_masks,
    single_words,
    texts_of,
)
from torch.overrides import TorchFunctionMode

from bgetrain.data.masking import Masking, draw_decoder, draw_encoder, masking
from bgetrain.types import WordChunk

LENGTHS = [5, 23, 2, 40, 1, 12, 3, 61]


def settings(**changes) -> Masking:
    paper = dict(encoder_ratio=0.3, decoder_ratio=0.5, decoder_masks=256, mask_id=MASK, vocab_size=VOCAB, seed=5)
    return masking(**(paper | changes))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("decoder_masks", [256, 4, 1])
@pytest.mark.parametrize("ratios", [(0.3, 0.5), (0.15, 0.7), (0.0, 1.0)])
def test_masks_equal_a_literal_loop_given_the_same_draws(sizes, decoder_masks, ratios):
    texts = texts_of(LENGTHS, sizes)
    chunk = chunk_of(texts, list(range(1000, 1000 - len(texts), -1)))
    ours = settings(encoder_ratio=ratios[0], decoder_ratio=ratios[1], decoder_masks=decoder_masks)
    encoder_ids, encoder_at = ours.encoder(chunk, 7)
    visible = ours.decoder(chunk, 7)
    encoder_draws, decoder_draws = draw_encoder(ours, chunk, 7), draw_decoder(ours, chunk, 7)
    assert visible.dtype == encoder_at.dtype == torch.bool
    for number, (ids, words) in enumerate(texts):
        length, num_words = len(ids), max(words) + 1
        orders = decoder_draws.orders[number].tolist()[: min(length, decoder_masks)]
        draws = TextDraws(
            [word for word in encoder_draws.orders[number, 0].tolist() if word < num_words],
            [[word for word in order if word < num_words] for order in orders],
            decoder_draws.picks[number].tolist()[:length],
            [tenth / 10 for tenth in encoder_draws.actions[number].tolist()],
            encoder_draws.random_ids[number].tolist(),
        )
        expected = literal_masks(ids, words, draws, *ratios, MASK)
        assert encoder_ids[number].tolist() == expected[0] + chunk.ids[number, length:].tolist()
        assert encoder_at[number].tolist() == expected[1] + [False] * (max(LENGTHS) - length)
        assert visible[number, :length, :length].tolist() == expected[2]
        assert not visible[number, length:].any()
        assert not visible[number, :, length:].any()


@pytest.mark.parametrize("sizes", SIZES)
def test_a_text_has_the_same_masks_in_any_chunk_and_under_any_padding(sizes):
    texts, ours = texts_of(LENGTHS, sizes), settings(decoder_masks=16)
    whole = chunk_of(texts, list(range(len(texts))))
    ids, at = ours.encoder(whole, 7)
    visible = ours.decoder(whole, 7)
    for chosen, extra in (([3], 0), ([1, 0], 0), ([5, 2, 7, 3], 19), ([4], 3), ([6, 2], 0)):
        part = chunk_of([texts[text] for text in chosen], chosen, extra)
        part_ids, part_at = ours.encoder(part, 7)
        part_visible = ours.decoder(part, 7)
        for place, text in enumerate(chosen):
            length = LENGTHS[text]
            assert torch.equal(part_ids[place, :length], ids[text, :length])
            assert torch.equal(part_at[place, :length], at[text, :length])
            assert torch.equal(part_visible[place, :length, :length], visible[text, :length, :length])


@pytest.mark.parametrize("change", [{"step": 8}, {"seed": 6}, {"row": 3}])
def test_another_step_seed_or_row_draws_other_masks(change):
    before, after = ((settings(seed=each.get("seed", 5)), each) for each in ({}, change))
    masks = []
    for ours, each in (before, after):
        chunk = single_words(60, row=each.get("row", 2))
        masks.append((*ours.encoder(chunk, each.get("step", 7)), ours.decoder(chunk, each.get("step", 7))))
    for first, second in zip(*masks, strict=True):
        assert not torch.equal(first, second)


def test_no_state_of_torch_or_numpy_is_read_or_changed_nor_the_chunk():
    chunk, ours = chunk_of(texts_of(LENGTHS), list(range(len(LENGTHS)))), settings()
    np.random.seed(0), torch.manual_seed(0)
    kept = [each.clone() for each in chunk]
    ids, visible = ours.encoder(chunk, 7)[0], ours.decoder(chunk, 7)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    np.random.seed(1), torch.manual_seed(1)
    assert torch.equal(ours.encoder(chunk, 7)[0], ids)
    assert torch.equal(ours.decoder(chunk, 7), visible)
    np.random.seed(0), torch.manual_seed(0)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(torch.equal(*pair) for pair in zip(chunk, kept, strict=True))


def test_specials_are_never_hidden_but_from_themselves_and_row_i_never_sees_i():
    texts, ours = texts_of(LENGTHS), settings()
    chunk = chunk_of(texts, list(range(len(texts))))
    for step in range(30):
        ids, at = ours.encoder(chunk, step)
        visible = ours.decoder(chunk, step)
        assert torch.equal(ids[~at], chunk.ids[~at])
        assert not at[chunk.words < 0].any()
        for number, length in enumerate(LENGTHS):
            own = visible[number, :length, :length]
            assert not own.diagonal().any()
            assert own[1:, 0].all(), "column 0 is visible to every row but row 0"
            assert own[:-1, -1].all(), "the last special token is visible to every row but its own"


def test_whole_words_are_hidden_together():
    chunk = chunk_of(texts_of([60], "long words"), [0])
    words = chunk.words[0]
    for step in range(20):
        rows = torch.cat([~settings().encoder(chunk, step)[1], settings().decoder(chunk, step)[0]])
        for word in range(int(words.max()) + 1):
            positions = (words == word).nonzero().flatten()
            others = torch.ones(len(rows), dtype=torch.bool)
            others[positions + 1] = False  # a row that belongs to the word hides itself besides
            seen = rows[others][:, positions].sum(dim=1)
            assert ((seen == 0) | (seen == len(positions))).all()


@pytest.mark.parametrize(("length", "encoder", "decoder"), [(23, 7, 12), (40, 12, 20), (5, 2, 2), (3, 1, 1), (2, 0, 0)])
def test_number_of_hidden_tokens_is_exact_for_words_of_one_token(length, encoder, decoder):
    # round() of 0.3 x length and 0.5 x length, halves to even; 3 tokens hold 1 word, 2 tokens none
    chunk = single_words(length)
    assert int(settings().encoder(chunk, 7)[1].sum()) == encoder
    hidden = (~settings().decoder(chunk, 7)[0]).sum(dim=1)
    assert ((hidden == decoder) | (hidden == decoder + 1)).all()


@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_at_least_one_token_is_hidden(ratio):
    chunk, ours = single_words(4), settings(encoder_ratio=ratio, decoder_ratio=ratio)
    assert int(ours.encoder(chunk, 7)[1].sum()) == 1
    assert (~ours.decoder(chunk, 7)[0]).sum(dim=1)[0] == 2  # row 0: one word and itself


def test_a_word_longer_than_the_target_is_skipped():
    # 10 tokens at 0.3: target 3; word 0 has 6 tokens and never fits, words 1 and 2 have one each and always do
    chunk = chunk_of([(list(range(10, 20)), [-1, 0, 0, 0, 0, 0, 0, 1, 2, -1])], [0])
    for step in range(20):
        assert settings().encoder(chunk, step)[1][0].nonzero().flatten().tolist() == [7, 8]


def test_a_set_of_one_mask_serves_every_position():
    chunk = chunk_of(texts_of([60]), [0])
    visible = settings(decoder_masks=1).decoder(chunk, 7)[0] | torch.eye(60, dtype=torch.bool)
    # beside its own diagonal a column is seen by all rows or by none
    assert (visible.all(dim=0) | (visible.sum(dim=0) == 1)).all()


class Counted(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def test_more_texts_positions_and_masks_cost_no_more_calls():
    calls = []
    for lengths in ([12, 9], [200, 150, 199] * 10):
        chunk = chunk_of(texts_of(lengths), list(range(len(lengths))))
        with Counted() as counted:
            settings().encoder(chunk, 7), settings().decoder(chunk, 7)
        calls.append(counted.calls)
    # 30 texts, 6,000 positions and 200 masks a text against 2, 24 and 12: only passes over what still fits may come on top,
    # four at most where the longest word has 4 tokens
    assert max(calls) < 500
    assert abs(calls[1] - calls[0]) < 200


def test_nothing_is_made_elsewhere_than_on_the_chunk_s_device():
    chunk, ours = chunk_of(texts_of(LENGTHS), list(range(len(LENGTHS)))), settings()
    expected = (*ours.encoder(chunk, 7), ours.decoder(chunk, 7))
    with torch.device("meta"):  # what names no device lands here, and does not mix with the chunk
        found = (*ours.encoder(chunk, 7), ours.decoder(chunk, 7))
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sizes", SIZES)
def test_a_gpu_makes_the_same_masks(sizes):
    chunk, ours = chunk_of(texts_of([*LENGTHS, 300], sizes), list(range(len(LENGTHS) + 1))), settings()
    there = WordChunk(*(each.cuda() for each in chunk))
    for expected, found in zip(
        (*ours.encoder(chunk, 7), ours.decoder(chunk, 7)), (*ours.encoder(there, 7), ours.decoder(there, 7)), strict=True
    ):
        assert found.is_cuda
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("cap", [256, 8])
def test_the_literal_collator_hides_as_much_as_these_masks(cap):
    texts, draw = texts_of([40, 23, 61, 3] * 30), Random(1)
    ids, words = [ids for ids, _ in texts], [words for _, words in texts]
    literal = literal_batch(ids, words, 0.3, 0.5, cap, MASK, VOCAB, PAD, draw)
    chunk, ours = chunk_of(texts, list(range(len(texts)))), settings(decoder_masks=cap)
    encoder_ids, at = ours.encoder(chunk, 1)
    visible = ours.decoder(chunk, 1)
    assert torch.equal(literal["ids"], chunk.ids)
    assert torch.equal(literal["mask"], chunk.mask)
    assert torch.equal(literal["decoder_at"], chunk.words >= 0)
    assert not literal["encoder_at"][chunk.words < 0].any()
    assert torch.equal(literal["encoder_ids"][~literal["encoder_at"]], chunk.ids[~literal["encoder_at"]])
    assert not literal["visible"].diagonal(dim1=1, dim2=2).any()
    # shares of 3,810 real tokens and of 155,000 places in the matrices; which words fit is drawn
    assert abs(literal["encoder_at"].sum() / at.sum() - 1) < 0.02
    assert abs((literal["encoder_ids"] == MASK).sum() / (encoder_ids == MASK).sum() - 1) < 0.1
    assert abs(literal["visible"].sum() / visible.sum() - 1) < 0.02
