import random

import numpy as np
import pytest

from untaxed.measuring import corpus, statistics

sacrebleu = pytest.importorskip("sacrebleu")
MARKS = [",", ".", "%", "12.5"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog's", "fell", "down", "Ärger", "größer", *MARKS]


def translations(items, overlap, seed=0):
    rng = random.Random(seed)
    rights = [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(items)]
    written = [
        " ".join(word if rng.random() < overlap else rng.choice(WORDS) for word in right.split()) for right in rights
    ]
    written[0] = ""
    return written, rights


def rows(written, rights, counts):
    return np.array([counts(one, [right]) for one, right in zip(written, rights)], dtype=np.float64)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("items", [1, 3, 40])
def test_corpus_scores_equal_sacrebleus(overlap, items):
    """Few items with little overlap have no 4-gram in common, which sacrebleu smooths by counts."""
    written, rights = translations(items, overlap)
    bleu = statistics.value("bleu", rows(written, rights, corpus.bleu_counts))
    chrf = statistics.value("chrf", rows(written, rights, corpus.chrf_counts))
    assert bleu == pytest.approx(sacrebleu.corpus_bleu(written, [rights]).score, abs=1e-9)
    assert chrf == pytest.approx(sacrebleu.corpus_chrf(written, [rights]).score, abs=1e-9)


def test_resamples_have_their_corpus_score():
    """A bootstrap's row of weights gives what sacrebleu says of the resampled corpus."""
    written, rights = translations(12, 0.4)
    weights = statistics.item_weights("test/abilities.en-de", 12, replicates=20)
    for name, counts, score in (
        ("bleu", corpus.bleu_counts, sacrebleu.corpus_bleu),
        ("chrf", corpus.chrf_counts, sacrebleu.corpus_chrf),
    ):
        drawn = statistics.draws(name, [rows(written, rights, counts)], weights)[:, 0]
        for value, row in zip(drawn, weights):
            times = np.rint(row * 12).astype(int)
            again = [np.repeat(np.array(texts, dtype=object), times).tolist() for texts in (written, rights)]
            assert value == pytest.approx(score(again[0], [again[1]]).score, abs=1e-9)


def test_several_right_translations():
    written, rights = translations(8, 0.5)
    others = translations(8, 0.5, seed=1)[1]
    made = [corpus.chrf_counts(one, pair) for one, pair in zip(written, zip(rights, others))]
    expected = sacrebleu.corpus_chrf(written, [rights, others]).score
    assert statistics.value("chrf", np.array(made)) == pytest.approx(expected, abs=1e-9)
    made = [corpus.bleu_counts(one, pair) for one, pair in zip(written, zip(rights, others))]
    expected = sacrebleu.corpus_bleu(written, [rights, others]).score
    assert statistics.value("bleu", np.array(made)) == pytest.approx(expected, abs=1e-9)


def test_two_splits_together_have_their_corpus_score():
    """What one model is measured on may be validation and test together."""
    parts = [translations(3, 0.2, seed) for seed in (0, 1)]
    scores = np.concatenate([rows(*part, corpus.bleu_counts) for part in parts])
    written, rights = ([text for part in parts for text in part[at]] for at in (0, 1))
    expected = sacrebleu.corpus_bleu(written, [rights])
    assert 0 in expected.counts  # smoothed, by the number of n-grams of both
    assert statistics.value("bleu", scores) == pytest.approx(expected.score, abs=1e-9)
