"""A model made of two is measured as that model wherever a model is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import build_model_dir

from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.decoding import LogitMixture, mix_logits
from untaxed.measuring import Item, Subject, Suite, entropy, exact_match, forward_kl, measure, perplexity, reverse_kl
from untaxed.measuring.sampling import sample
from untaxed.measuring.suite import Sampling

PROMPTS = tuple(f"w{i} w{(3 * i) % 28} w{(7 * i) % 28}"[: 2 + 3 * (i % 3)].strip() for i in range(12))
TEXTS = [" ".join(f"w{(i * k) % 28}" for k in range(1, 9)) for i in range(1, 8)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Two models that disagree, and their tokenizer."""
    folders = [build_model_dir(tmp_path_factory.mktemp("mixed") / str(seed), seed=seed) for seed in (0, 1)]
    return load_model(folders[0]), load_model(folders[1]), load_tokenizer(folders[0])


def suite() -> Suite:
    asked = [Item(f"w{i % 28} w{(5 * i) % 28}", f" w{(i * 11) % 28} w{i % 28}") for i in range(20)]
    measures = (
        exact_match("one", {"validation": asked, "test": asked}),
        *(forward_kl(), reverse_kl(), entropy(), perplexity("texts", {"validation": TEXTS, "test": TEXTS})),
    )
    prompts = {"validation": PROMPTS, "test": PROMPTS}
    return Suite(measures, ("one",), (), prompts, Sampling(max_new_tokens=5))


def slow_samples(initial: Any, aligned: Any, tokenizer: Any, share: float) -> list[list[int]]:
    """Token by token, every prompt alone, no cache, from the full logits of both models."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(PROMPTS), 5, generator=generator, dtype=torch.float64)
    rows = []
    for numbers, prompt in zip(uniform, PROMPTS):
        ids, new = tokenizer(prompt)["input_ids"], []
        for number in numbers:
            tokens = torch.tensor([ids + new])
            with torch.no_grad():
                logits = [model(tokens).logits[0, -1] for model in (initial, aligned)]
            chances = torch.softmax(share * logits[0] + (1 - share) * logits[1], -1).cumsum(-1, dtype=torch.float64)
            new.append(int(torch.searchsorted(chances, number * chances[-1], right=True)))
            if new[-1] == tokenizer.eos_token_id:
                break
        rows.append(new)
    return rows


def test_it_writes_from_the_mixed_logits_of_both(models: tuple[Any, Any, Any]) -> None:
    initial, aligned, tokenizer = models
    drawn = sample(LogitMixture(initial, aligned, 0.4), tokenizer, PROMPTS, Sampling(5, batch_size=5))
    kept = [row[:n] for row, n in zip(drawn.token_ids.tolist(), drawn.mask.sum(1).tolist())]
    assert kept == slow_samples(initial, aligned, tokenizer, 0.4)
    for one, share in ((initial, 0.0), (aligned, 1.0)):
        assert kept != slow_samples(initial, aligned, tokenizer, share), one


def test_questions_kl_and_perplexity_are_of_the_mixture(models: tuple[Any, Any, Any]) -> None:
    initial, aligned, tokenizer = models
    base = Subject(initial, tokenizer, suite())
    mixture = LogitMixture(initial, aligned, 0.4)
    reading = measure(Subject(mixture, tokenizer, base.suite, initial=base), "test")
    losses, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            full = mixture(input_ids=ids).logits
            by_hand = mix_logits(initial(ids).logits, aligned(ids).logits, initial_share=0.4)
        assert torch.equal(full, by_hand)
        losses += torch.nn.functional.cross_entropy(full[0, :-1], ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    assert reading.values["drift"]["texts"] == pytest.approx(torch.tensor(losses / tokens).exp().item(), rel=1e-5)
    forward = 0.0
    drawn, count = base.completions("test"), 0
    for ids, row, length in zip(drawn.prompt_ids, drawn.token_ids.tolist(), drawn.mask.sum(1).tolist()):
        tokens_in = torch.tensor([[*ids, *row[:length]]])
        with torch.no_grad():
            p = torch.log_softmax(initial(tokens_in).logits[0, len(ids) - 1 : -1].double(), -1)
            q = torch.log_softmax(mixture(input_ids=tokens_in).logits[0, len(ids) - 1 : -1].double(), -1)
        forward, count = forward + (p.exp() * (p - q)).sum().item(), count + length
    assert reading.values["drift"]["forward_kl"] == pytest.approx(forward / count, rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_the_ends_it_is_the_parent_to_the_bit(models: tuple[Any, Any, Any], share: float) -> None:
    initial, aligned, tokenizer = models
    base = Subject(initial, tokenizer, suite())
    mixed = Subject(LogitMixture(initial, aligned, share), tokenizer, base.suite, initial=base)
    alone = Subject((aligned, initial)[int(share)], tokenizer, base.suite, initial=base)
    one, other = measure(mixed, "test"), measure(alone, "test")
    assert one.values == other.values
    assert all((one.scores[key] == other.scores[key]).all() for key in other.scores)
    assert mixed.completions("test").texts == alone.completions("test").texts


def test_only_what_counts_is_run(models: tuple[Any, Any, Any]) -> None:
    initial, aligned, _ = models
    ran: list[str] = []
    hooks = [
        model.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for model, name in ((initial, "initial"), (aligned, "aligned"))
    ]
    ids = torch.tensor([[4, 5, 6]])
    for share in (0.0, 0.3, 1.0):
        LogitMixture(initial, aligned, share)(input_ids=ids)
    for hook in hooks:
        hook.remove()
    assert ran == ["aligned", "initial", "aligned", "initial"]
