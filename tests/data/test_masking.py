"""RetroMAE's masks against a literal loop over positions and masks, and their shares over many draws."""

import numpy as np
import pytest
import torch

from bgetrain.data.masking import draw_text, mask_texts
from bgetrain.types import MaskedChunk, Ragged, TextBatch

CLS, SEP, PAD, MASK, VOCAB = 1, 2, 0, 3, 200
LENGTHS = [5, 23, 2, 40, 12, 31]


def text_batch(lengths: list[int], seed: int = 0) -> TextBatch:
    """Texts [CLS] ... [SEP] with words of 1 to 4 tokens; rows count down from 1,000."""
    random = np.random.default_rng(seed)
    ids, words = [], []
    for length in lengths:
        inner = np.repeat(np.arange(length), random.integers(1, 5, length))[: length - 2]
        ids += [CLS, *random.integers(4, VOCAB, length - 2).tolist(), SEP]
        words += [-1, *inner.tolist(), -1]
    rows = torch.arange(1000, 1000 - len(lengths), -1)
    return TextBatch(Ragged(torch.tensor(ids), torch.tensor(lengths)), torch.tensor(words), rows, 0.0)


def masked(batch: TextBatch, index: list[int], step: int = 7, **changes) -> MaskedChunk:
    """Calls mask_texts with the settings of the paper unless `changes` says otherwise."""
    settings = dict(encoder_ratio=0.3, decoder_ratio=0.5, decoder_masks=256, seed=5, step=step) | changes
    return mask_texts(batch, torch.tensor(index), mask_id=MASK, vocab_size=VOCAB, pad_id=PAD, **settings)


def texts_of(batch: TextBatch) -> list[tuple[list[int], list[int]]]:
    """Ids and words of each text as lists."""
    sizes = batch.text.lengths.tolist()
    pieces = zip(batch.text.ids.split(sizes), batch.words.split(sizes), strict=True)
    return [(ids.tolist(), words.tolist()) for ids, words in pieces]


def reference_word_mask(words: list[int], order: list[int], ratio: float) -> list[int]:
    """The whole-word routine of transformers 4 (data_collator.py) given the order of the words."""
    to_mask = max(1, round(len(words) * ratio))
    covered: set[int] = set()
    for word in order:
        if len(covered) >= to_mask:
            break
        positions = [position for position, own in enumerate(words) if own == word]
        if len(covered) + len(positions) > to_mask:
            continue
        covered.update(positions)
    return [1 if position in covered else 0 for position in range(len(words))]


def reference(ids: list[int], words: list[int], row: int, step: int, decoder_masks: int) -> tuple[list, ...]:
    """One text in plain loops from the draws of `draw_text`: encoder ids and labels, visible rows, decoder labels."""
    length, num_words = len(ids), max(words) + 1
    draws = draw_text(5, step, row, length, num_words, decoder_masks, VOCAB)
    orders = draws.orders.tolist()
    encoder_ids, encoder_labels = list(ids), [-100] * length
    for position, hidden in enumerate(reference_word_mask(words, orders[0], 0.3)):
        if hidden:
            encoder_labels[position] = ids[position]
            if draws.actions[position] < 0.8:
                encoder_ids[position] = MASK
            elif draws.actions[position] < 0.9:
                encoder_ids[position] = int(draws.random_ids[position])
    mask_set = [reference_word_mask(words, order, 0.5) for order in orders[1:]]
    assert len(mask_set) == min(length, decoder_masks)
    rows = []
    for position in range(length):
        mask = list(mask_set[draws.picks[position]])
        mask[position] = 1
        rows.append([1 - hidden for hidden in mask])
    return encoder_ids, encoder_labels, rows, [-100, *ids[1:-1], -100]


@pytest.mark.parametrize("decoder_masks", [256, 4])
def test_masks_equal_a_literal_loop_given_the_same_draws(decoder_masks):
    batch = text_batch(LENGTHS)
    chunk = masked(batch, list(range(len(LENGTHS))), decoder_masks=decoder_masks)
    longest = max(LENGTHS)
    for text, (ids, words) in enumerate(texts_of(batch)):
        length, extra = len(ids), longest - len(ids)
        encoder_ids, encoder_labels, rows, labels = reference(ids, words, 1000 - text, 7, decoder_masks)
        assert chunk.clean.ids[text].tolist() == ids + [PAD] * extra
        assert chunk.clean.mask[text].tolist() == [True] * length + [False] * extra
        assert chunk.encoder_ids[text].tolist() == encoder_ids + [PAD] * extra
        assert chunk.encoder_labels[text].tolist() == encoder_labels + [-100] * extra
        assert chunk.decoder_labels[text].tolist() == labels + [-100] * extra
        assert chunk.decoder_visible[text, :length, :length].int().tolist() == rows
        assert not chunk.decoder_visible[text, length:].any()
        assert not chunk.decoder_visible[text, :, length:].any()


def test_word_orders_are_permutations_and_every_order_is_as_likely():
    draws = [draw_text(0, 0, row, 40, 3, 256, VOCAB) for row in range(300)]
    orders = np.concatenate([draw.orders for draw in draws])
    assert (np.sort(orders, axis=1) == np.arange(3)).all()
    _, counts = np.unique(orders @ [9, 3, 1], return_counts=True)
    # 12,300 orders over 6 permutations: 2,050 each, standard deviation 41
    assert len(counts) == 6
    assert np.abs(counts - 2050).max() < 5 * 41


def test_a_text_has_the_same_masks_in_any_chunk_and_on_any_rank():
    batch = text_batch(LENGTHS)
    whole = masked(batch, list(range(len(LENGTHS))))
    for index in ([3], [1, 0], [5, 2, 4]):
        part = masked(batch, index)
        for place, text in enumerate(index):
            length = LENGTHS[text]
            for ours, alone in zip(whole[1:], part[1:], strict=True):
                where = (slice(length),) * (ours.ndim - 1)
                torch.testing.assert_close(ours[text][where], alone[place][where], rtol=0, atol=0)

    # The same text third on one rank and first on another, under the same row of the global batch
    sizes = batch.text.lengths.tolist()
    own = Ragged(batch.text.ids.split(sizes)[3], batch.text.lengths[3:4])
    other = masked(TextBatch(own, batch.words.split(sizes)[3], batch.rows[3:4], 0.0), [0])
    torch.testing.assert_close(other.decoder_visible[0], whole.decoder_visible[3, :40, :40], rtol=0, atol=0)
    torch.testing.assert_close(other.encoder_ids[0], whole.encoder_ids[3, :40], rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"step": 8}, {"seed": 6}])
def test_another_step_or_seed_draws_other_masks(change):
    batch = text_batch(LENGTHS)
    before, after = masked(batch, [3]), masked(batch, [3], **change)
    assert not torch.equal(before.decoder_visible, after.decoder_visible)
    assert not torch.equal(before.encoder_labels, after.encoder_labels)


def test_the_same_text_in_another_row_draws_other_masks():
    batch = text_batch([40])
    other = batch._replace(rows=batch.rows + 1)
    assert not torch.equal(masked(batch, [0]).decoder_visible, masked(other, [0]).decoder_visible)


def test_no_state_of_torch_or_numpy_is_read_or_changed():
    batch = text_batch(LENGTHS)
    np.random.seed(0), torch.manual_seed(0)
    before = masked(batch, [3])
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    np.random.seed(1), torch.manual_seed(1)
    assert torch.equal(masked(batch, [3]).decoder_visible, before.decoder_visible)
    np.random.seed(0), torch.manual_seed(0)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_specials_are_never_masked_and_row_i_never_sees_i():
    batch = text_batch(LENGTHS)
    for step in range(30):
        chunk = masked(batch, list(range(len(LENGTHS))), step=step)
        for text, length in enumerate(LENGTHS):
            visible = chunk.decoder_visible[text, :length, :length]
            assert not visible.diagonal().any()
            assert visible[1:, 0].all(), "column 0 is visible to every row but row 0"
            assert visible[:-1, -1].all(), "the last special token is visible to every row but its own"
            for special in (0, length - 1):
                assert chunk.encoder_labels[text, special] == -100
                assert chunk.decoder_labels[text, special] == -100
                assert chunk.encoder_ids[text, special] == chunk.clean.ids[text, special]


def test_whole_words_are_masked_together():
    batch = text_batch([60])
    words = torch.tensor(texts_of(batch)[0][1])
    for step in range(20):
        chunk = masked(batch, [0], step=step)
        rows = torch.cat([chunk.encoder_labels == -100, chunk.decoder_visible[0]])  # True: not masked
        for word in range(int(words.max()) + 1):
            positions = (words == word).nonzero().flatten()
            others = torch.ones(len(rows), dtype=torch.bool)
            others[positions + 1] = False  # a row that belongs to the word hides itself besides
            seen = rows[others][:, positions].sum(dim=1)
            assert ((seen == 0) | (seen == len(positions))).all()


@pytest.mark.parametrize(("length", "encoder", "decoder"), [(23, 7, 12), (40, 12, 20), (5, 2, 2), (3, 1, 2), (2, 0, 0)])
def test_number_of_masked_tokens_is_exact_for_words_of_one_token(length, encoder, decoder):
    # round() of 0.3 x length and 0.5 x length, halves to even; 3 tokens hold 1 word, 2 tokens none
    batch = text_batch([length])
    words = torch.tensor([-1, *range(length - 2), -1])
    chunk = masked(batch._replace(words=words), [0])
    assert int((chunk.encoder_labels != -100).sum()) == encoder
    hidden = (~chunk.decoder_visible[0]).sum(dim=1)
    decoder = min(decoder, length - 2)
    assert ((hidden == decoder) | (hidden == decoder + 1)).all()


@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_at_least_one_token_is_masked(ratio):
    batch = text_batch([4])._replace(words=torch.tensor([-1, 0, 1, -1]))
    chunk = masked(batch, [0], encoder_ratio=ratio, decoder_ratio=ratio)
    assert int((chunk.encoder_labels != -100).sum()) == 1
    assert (~chunk.decoder_visible[0]).sum(dim=1).tolist()[0] == 2  # row 0: one word and itself


def test_a_word_longer_than_the_target_is_skipped():
    # 10 tokens at 0.3: target 3; word 0 has 6 tokens and never fits, words 1 and 2 have one each and always do
    ids = torch.arange(10, 20)
    words = torch.tensor([-1, 0, 0, 0, 0, 0, 0, 1, 2, -1])
    batch = TextBatch(Ragged(ids, torch.tensor([10])), words, torch.tensor([0]), 0.0)
    for step in range(20):
        labels = masked(batch, [0], step=step).encoder_labels[0]
        assert (labels != -100).nonzero().flatten().tolist() == [7, 8]


def test_shares_of_masked_and_replaced_tokens_over_many_draws():
    length = 100
    batch = text_batch([length] * 32)
    words = torch.tensor([-1, *range(length - 2), -1]).repeat(32)
    chunks = [masked(batch._replace(words=words), list(range(32)), step=step) for step in range(20)]
    hit = torch.cat([chunk.encoder_labels != -100 for chunk in chunks])
    clean = torch.cat([chunk.clean.ids for chunk in chunks])[hit]
    shown = torch.cat([chunk.encoder_ids for chunk in chunks])[hit]
    assert len(clean) == 640 * 30
    # 19,200 draws: standard deviations 0.0029 and 0.0022; a random id hits the mask or the token itself once in 200
    assert abs((shown == MASK).float().mean() - 0.8005) < 0.012
    assert abs((shown == clean).float().mean() - 0.1005) < 0.009
    assert len(shown.unique()) > 0.9 * VOCAB
    # Each inner column is hidden from half of the other rows: 50 of 98 words
    visible = torch.cat([chunk.decoder_visible for chunk in chunks]).float()  # [640, 100, 100]
    assert abs(visible[:, 0, 1:-1].mean() - 48 / 98) < 1e-6
    per_column = visible[:, :1, 1:-1].mean(dim=(0, 1))
    assert (per_column - 48 / 98).abs().max() < 5 * 0.02


def test_positions_pick_masks_from_the_whole_set_with_replacement():
    picks = [draw_text(0, step, 0, 300, 3, 256, VOCAB).picks for step in range(100)]
    assert min(map(min, picks)) == 0
    assert max(map(max, picks)) == 255
    used = np.mean([len(set(own.tolist())) for own in picks])
    # 300 draws with replacement from 256 use 256 x (1 - (255/256)^300) = 176.9 of them; standard error 0.6
    assert abs(used - 176.9) < 3


def test_a_set_of_one_mask_serves_every_position():
    visible = masked(text_batch([60]), [0], decoder_masks=1).decoder_visible[0] | torch.eye(60, dtype=torch.bool)
    # Beside its own diagonal a column is seen by all rows or by none
    assert (visible.all(dim=0) | (visible.sum(dim=0) == 1)).all()


def test_mask_is_none_where_nothing_is_padded():
    batch = text_batch([9, 9, 4])
    assert masked(batch, [0, 1]).clean.mask is None
    assert masked(batch, [0, 2]).clean.mask.sum() == 13
    chunk = masked(batch, [2])
    assert chunk.clean.ids.shape == (1, 4)
    assert chunk.decoder_visible.dtype == torch.bool
    assert chunk.encoder_ids.dtype == chunk.encoder_labels.dtype == chunk.decoder_labels.dtype == torch.int64
