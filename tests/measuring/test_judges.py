"""A language model as judge: both orders, letters that cancel out, and what cannot judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORDS, word_tokenizer

from untaxed.checkpoints import load_model, load_tokenizer, save_model
from untaxed.errors import DataError, SpecError
from untaxed.measuring import judges
from untaxed.measuring.judges import CLOSING, LanguageModelJudge, question


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of decided opinions whose tokenizer knows the words of the question."""
    return build_judge(tmp_path_factory.mktemp("judge") / "model")


def build_judge(path: Path, *, letters: bool = True, context: int = 256) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer()
    words = set((question("", "", "") + CLOSING).split()) - {"A:", "B:"}
    tokenizer.add_tokens([*sorted(words - {"A", "B"}), *(["A", "B"] if letters else [])])
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=context, initializer_range=0.4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    save_model(LlamaForCausalLM(config), tokenizer, path)
    return path


def log_odds(path: Path, text: str) -> float:
    """log p(A) - log p(B) after a question, by a plain forward pass."""
    model, tokenizer = load_model(path), load_tokenizer(path)
    with torch.no_grad():
        logits = model(**tokenizer(text + CLOSING, return_tensors="pt")).logits[0, -1].double()
    a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "AB")
    return float(logits[a] - logits[b])


ROWS = [(f"w{n} w3", f"w{2 * n} w1", f"w{3 * n % 28} w{n + 5}") for n in range(8)]


def test_an_answer_wins_where_its_letters_are_likelier_over_both_orders(judge: Path) -> None:
    made = LanguageModelJudge(judge)
    made.check()
    prompts, ours, theirs = zip(*ROWS)
    found = made(prompts, ours, theirs)
    margins = [log_odds(judge, question(p, a, b)) - log_odds(judge, question(p, b, a)) for p, a, b in ROWS]
    assert found == [(np.sign(margin) + 1) / 2 for margin in margins]
    assert 0 < sum(found) < len(found)
    assert made(prompts, theirs, ours) == [1 - outcome for outcome in found]


def test_a_letter_that_is_liked_everywhere_wins_nothing(judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, ours, theirs = zip(*ROWS)
    fair = LanguageModelJudge(judge)(prompts, ours, theirs)
    inner = judges.log_probs
    letter = load_tokenizer(judge).convert_tokens_to_ids("A")
    monkeypatch.setattr(judges, "log_probs", lambda logits, targets: inner(logits, targets) + 50 * (targets == letter))
    assert LanguageModelJudge(judge)(prompts, ours, theirs) == fair


def test_equal_answers_and_empty_ones_are_judged(judge: Path) -> None:
    assert LanguageModelJudge(judge)(["w1", "w1"], ["w2", ""], ["w2", ""]) == [0.5, 0.5]


def test_what_cannot_judge_is_refused(tmp_path: Path, judge: Path) -> None:
    with pytest.raises(SpecError, match="its tokenizer does not tell A from B"):
        LanguageModelJudge(build_judge(tmp_path / "mute", letters=False)).check()
    with pytest.raises(SpecError, match="has no chat template"):
        LanguageModelJudge(judge, chat=True).check()
    long = " ".join(WORDS * 10)
    with pytest.raises(DataError, match=r"2 of 4 questions are longer than the judge's context of 256 tokens; none is"):
        LanguageModelJudge(judge)(["w1", "w1"], ["w2", long], ["w3", "w4"])


def test_chat_puts_the_question_by_the_template(tmp_path: Path) -> None:
    path = build_judge(tmp_path / "chat")
    (path / "chat_template.jinja").write_text("{% for m in messages %}w7 {{ m.content }} w8 {% endfor %}")
    made = LanguageModelJudge(path, chat=True)
    made.check()
    [(p, a, b)] = ROWS[1:2]
    put = "w7 {}Say A or B. w8 "
    odds = [log_odds(path, put.format(question(p, *pair))) for pair in ((a, b), (b, a))]
    assert made([p], [a], [b]) == [(np.sign(odds[0] - odds[1]) + 1) / 2]
