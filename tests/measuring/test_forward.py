import pytest
import torch

from untaxed.measuring import batching, forward
from untaxed.measuring.batching import Scored, batches
from untaxed.measuring.forward import log_probs, logits_at, read, totals

from .conftest import tiny_llama

QUIZ = [
    Scored(tuple(range(3, 3 + before)) + answer, before, "")
    for before in (2, 5, 3)
    for answer in [(30, 31), (40, 41, 42, 43), (35,)]
]
ITEMS = [Scored(tuple(range(3, 3 + length)), 1 + length // 3, "") for length in (4, 9, 6, 12)]


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=44, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config)


def gemma2():
    """Soft-caps its logits after the output layer, and every second layer sees four tokens only."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=44,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
        final_logit_softcapping=0.5,
        initializer_range=0.4,
    )
    return Gemma2ForCausalLM(config)


def without_output_layer():
    model = tiny_llama()
    model.get_output_embeddings = lambda: None
    return model


MODELS = [tiny_llama, gpt2, gemma2, without_output_layer]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("share", [True, False])
@torch.no_grad()
def test_logits_equal_those_of_every_item_alone(make, share):
    model = make().eval()
    items = ITEMS + QUIZ
    seen = 0
    for batch in batches(items, vocabulary=44, share=share):
        logits = logits_at(model, batch)
        for owner in batch.owners.unique().tolist():
            item = items[owner]
            alone = model(torch.tensor([item.tokens[:-1]])).logits[0, item.start - 1 :]
            assert torch.allclose(logits[batch.owners == owner], alone, atol=1e-5)
            seen += 1
    assert seen == len(items)


@torch.no_grad()
def test_the_output_layer_sees_the_scored_places_only(model):
    (batch,) = batches(ITEMS, vocabulary=44)
    rows = []
    hook = model.lm_head.register_forward_hook(lambda _, args, out: rows.append(tuple(args[0].shape[:2])))
    logits_at(model, batch)
    hook.remove()
    assert rows == [(1, len(batch.targets))]


def test_the_hook_is_gone_after_an_error(model):
    with pytest.raises(IndexError):
        read(model, torch.tensor([0]), torch.tensor([0]), input_ids=torch.tensor([[10_000]]))
    assert not model.lm_head._forward_pre_hooks


def test_log_probs_are_those_of_the_softmax(monkeypatch):
    monkeypatch.setattr(forward, "LOGIT_ENTRIES", 4 * 44 * 3)  # pieces of three rows
    logits, targets = torch.randn(10, 44), torch.randint(44, (10,))
    expected = logits.double().log_softmax(-1)[torch.arange(10), targets]
    assert log_probs(logits, targets).dtype == torch.float64
    assert torch.allclose(log_probs(logits, targets), expected, atol=1e-6)


def test_totals_sum_and_count_by_owner():
    made = totals(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 4)
    assert made.tolist() == [[2.0, 1.0], [0.0, 0.0], [5.0, 2.0], [0.0, 0.0]]


def test_one_logit_budget():
    assert forward.LOGIT_ENTRIES == batching.LOGIT_ENTRIES
