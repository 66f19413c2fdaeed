import pytest
import torch

from untaxed.measuring.forward import read
from untaxed.measuring.places import FAMILIES, only_places

SIZES = {
    "vocab_size": 44,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}


def tiny(family: str):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES)).eval()


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_what_is_read_is_what_the_whole_model_says(family):
    model = tiny(family)
    feed_forward = model.get_decoder().layers[-1].mlp
    seen = []
    hook = feed_forward.register_forward_hook(lambda _, args, out: seen.append(tuple(args[0].shape)), prepend=True)
    ids = torch.randint(3, 44, (3, 7))
    rows, columns = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([2, 5, 6, -1, -1])  # a place may be read twice
    logits, _ = read(model, rows, columns, input_ids=ids)
    hook.remove()
    assert seen == [(1, 5, 16)]
    torch.testing.assert_close(logits, model(ids).logits[rows, columns], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_places_as_many_as_the_input_has_are_computed_as_ever(model):
    seen = []
    hook = model.model.layers[-1].mlp.register_forward_hook(lambda _, args, out: seen.append(tuple(args[0].shape)))
    ids = torch.randint(3, 44, (4, 1))
    logits, _ = read(model, torch.arange(4), torch.full((4,), -1), input_ids=ids)
    hook.remove()
    assert seen == [(4, 1, 16)]
    assert torch.equal(logits, model(ids).logits[:, -1])


def test_nothing_stays_behind(model):
    with pytest.raises(KeyError), only_places(model, torch.tensor([0]), torch.tensor([0]), torch.Size((2, 3))):
        raise KeyError
    feed_forward = model.model.layers[-1].mlp
    assert not feed_forward._forward_hooks
    assert not feed_forward._forward_pre_hooks
    assert not model.lm_head._forward_pre_hooks
