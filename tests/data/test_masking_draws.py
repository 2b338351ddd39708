"""The draws of RetroMAE's masks: their shares, their independence, and their values."""

from itertools import permutations

import numpy as np
import torch
from retromae import MASK, VOCAB, chunk_of, single_words, texts_of

from bgetrain.data.masking import Masking, draw_decoder, draw_encoder, masking, mixed
from bgetrain.data.order import hashed

# seed 5, step 1,000, rows 719 and 720
ENCODER_ORDERS = [[5, 1, 4, 0, 2, 3, 6], [1, 4, 0, 5, 2, 3, 6]]
ACTIONS = [[3, 2, 8, 4, 5, 4, 2, 6, 1], [9, 8, 7, 7, 7, 6, 5, 9, 5]]
RANDOM_IDS = [37, 170, 183, 91, 157, 165, 0, 24, 72]  # of row 719
DECODER_ORDERS = [[3, 0, 1, 2, 6, 4, 5], [2, 3, 5, 4, 1, 0, 6], [4, 2, 3, 5, 1, 6, 0]]  # of row 720
PICKS = [[2, 2, 0, 2, 2, 1, 1, 1, 1], [1, 1, 1, 0, 2, 0, 1, 0, 0]]


def settings(**changes) -> Masking:
    paper = dict(encoder_ratio=0.3, decoder_ratio=0.5, decoder_masks=256, mask_id=MASK, vocab_size=VOCAB, seed=5)
    return masking(**(paper | changes))


def test_eighty_ten_ten_of_the_hidden_tokens():
    chunk, ours = single_words(102, 64), settings()
    ids, at = (torch.cat(parts) for parts in zip(*(ours.encoder(chunk, step) for step in range(20)), strict=True))
    shown, clean = ids[at], chunk.ids.repeat(20, 1)[at]
    assert len(shown) == 1280 * 31  # round(102 x 0.3)
    # 39,680 draws: standard deviations 0.0020 and 0.0015; a random id is the mask or the token itself once in 200
    assert abs((shown == MASK).float().mean() - 0.8005) < 0.008
    assert abs((shown == clean).float().mean() - 0.1005) < 0.006
    random = shown[(shown != MASK) & (shown != clean)]
    counts = torch.bincount(random, minlength=VOCAB)
    # 3,930 draws over 200 ids: 20 each, standard deviation 4.5
    assert (random.min(), random.max()) == (0, VOCAB - 1)
    assert counts[torch.arange(VOCAB) != MASK].min() >= 3
    assert counts.max() < 20 + 6 * 4.5


def test_every_word_is_hidden_as_often_and_no_two_together_more_than_others():
    chunk, ours = single_words(12, 400), settings(decoder_masks=8)
    visible = torch.cat([ours.decoder(chunk, step)[:, 0, 1:-1] for step in range(10)])  # row 0: a random mask of each set
    encoder = torch.cat([ours.encoder(chunk, step)[1][:, 1:-1] for step in range(10)])
    for hidden, number in ((~visible, 6), (encoder, 4)):  # of 10 words
        together = hidden.double().T @ hidden.double() / len(hidden)
        assert len(hidden) == 4000
        alone, pairs = together.diagonal(), together[~torch.eye(10, dtype=torch.bool)]
        # 4,000 draws: standard deviation of each share 0.008 at most
        assert (alone - number / 10).abs().max() < 5 * 0.008
        assert (pairs - number * (number - 1) / 90).abs().max() < 5 * 0.008


def test_every_order_of_the_words_is_as_likely():
    draws = draw_decoder(settings(), single_words(6, 2000), 0).orders.flatten(0, 1)  # 12,000 orders of 4 words
    counts = torch.bincount(draws @ torch.tensor([64, 16, 4, 1]), minlength=256)
    codes = [first * 64 + second * 16 + third * 4 + last for first, second, third, last in permutations(range(4))]
    assert int(counts[codes].sum()) == 12_000
    # 500 of each, standard deviation 22
    assert (counts[codes] - 500).abs().max() < 5 * 22


def test_the_masks_of_a_set_are_independent():
    orders = draw_decoder(settings(), single_words(102, 8), 0).orders  # [8, 102, 100]
    hidden = torch.zeros(orders.shape, dtype=torch.double).scatter_(2, orders[:, :, :50], 1.0).flatten(0, 1)
    shared = (hidden @ hidden.T)[~torch.eye(len(hidden), dtype=torch.bool)]
    # two halves of 100 words share 25, hypergeometric of standard deviation 2.51
    assert abs(shared.mean() - 25) < 0.02
    assert abs(shared.std() - 2.51) < 0.05
    assert shared.max() < 50


def test_positions_pick_masks_from_the_whole_set_with_replacement():
    picks = draw_decoder(settings(), single_words(300, 100), 0).picks
    counts = torch.bincount(picks.flatten(), minlength=256)
    assert len(counts) == 256
    # 30,000 picks: 117 of each mask, standard deviation 10.8
    assert (counts - 117.2).abs().max() < 5 * 10.8
    used = np.mean([len(own.unique()) for own in picks])
    # 300 draws with replacement from 256 use 256 x (1 - (255/256)^300) = 176.9 of them; standard error 0.6
    assert abs(used - 176.9) < 3
    short = chunk_of(texts_of([9, 40]), [0, 1])
    draws = torch.cat([draw_decoder(settings(decoder_masks=20), short, step).picks for step in range(50)])
    assert draws[::2, :9].unique().tolist() == list(range(9)), "of a text shorter than decoder_masks"
    assert draws[1::2].unique().tolist() == list(range(20))


def test_hashes_are_those_of_numpy():
    draw = np.random.default_rng(0)
    states, keys = draw.integers(-(2**63), 2**63, (50, 1)), draw.integers(0, 2**63, 40)
    for first in (0, 1, 2**63 - 1):
        ours = mixed(mixed(int(hashed(first).astype(np.int64)), torch.from_numpy(keys)), torch.arange(40))
        assert (ours.numpy().view(np.uint64) == hashed(first, keys, np.arange(40))).all()
    table = mixed(torch.from_numpy(states), torch.from_numpy(keys))
    assert table.shape == (50, 40)
    assert (table[7] == mixed(int(states[7, 0]), torch.from_numpy(keys))).all()


def test_draws_stay_the_same_from_release_to_release():
    chunk, ours = single_words(9, 2, row=719), settings(decoder_masks=3)
    encoder, decoder = draw_encoder(ours, chunk, 1000), draw_decoder(ours, chunk, 1000)
    assert encoder.orders[:, 0].tolist() == ENCODER_ORDERS
    assert encoder.actions.tolist() == ACTIONS
    assert encoder.random_ids[0].tolist() == RANDOM_IDS
    assert decoder.orders[1].tolist() == DECODER_ORDERS
    assert decoder.picks.tolist() == PICKS
