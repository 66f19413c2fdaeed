"""Reward models: what a text is scored, and what is refused before or instead of a wrong number."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORDS, build_classifier_dir, build_model_dir, word_tokenizer

from untaxed import pocket
from untaxed.checkpoints import load_classifier, load_tokenizer, save_model
from untaxed.errors import CheckpointError, DataError, SpecError
from untaxed.measuring import reward_models
from untaxed.measuring.reward_models import RewardModel
from untaxed.measuring.reward_spec import ModelReward, build_reward
from untaxed.measuring.rewards import rewards_of
from untaxed.pocket.rewards import ProxyReward


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_classifier_dir(tmp_path_factory.mktemp("single") / "reward")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_classifier_dir(tmp_path_factory.mktemp("several") / "reward", labels=("bad", "neutral", "good"))


def texts(count: int) -> tuple[list[str], list[str]]:
    rng = random.Random(0)
    prompts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]
    return prompts, [" ".join(rng.choices(WORDS, k=rng.randint(0, 20))) for _ in range(count)]


def alone(path: Path, text: str) -> torch.Tensor:
    """The logits of one text, without a batch around it."""
    ids = load_tokenizer(path)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return load_classifier(path)(input_ids=ids).logits[0]


def test_a_batch_scores_what_every_text_alone_would_get(single: Path) -> None:
    prompts, completions = texts(13)
    made = RewardModel(single, batch_size=4)(prompts, completions)
    wanted = [float(alone(single, f"{p} {c}".strip())) for p, c in zip(prompts, completions)]
    assert made == pytest.approx(wanted, abs=1e-5)
    assert np.std(made) > 0.1


def test_an_encoder_is_scored_like_a_text_alone(tmp_path: Path) -> None:
    """One that reads segments, from a tokenizer that names them; a decoder's tokenizer that names them is no matter."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4 + len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, num_labels=1, initializer_range=0.3,
    )  # fmt: skip
    save_model(BertForSequenceClassification(config), word_tokenizer(), tmp_path / "encoder")
    build_classifier_dir(tmp_path / "decoder")
    prompts, completions = texts(7)
    for name in ("encoder", "decoder"):
        held = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        held["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(held))
        made = RewardModel(tmp_path / name, batch_size=3)(prompts, completions)
        wanted = [float(alone(tmp_path / name, f"{p} {c}".strip())) for p, c in zip(prompts, completions)]
        assert made == pytest.approx(wanted, abs=1e-5)


def test_a_template_makes_the_text(single: Path) -> None:
    made = RewardModel(single, template="w1 {completion} <eos>")(["w9"], ["w2 w3"])
    assert made == pytest.approx([float(alone(single, "w1 w2 w3 <eos>"))], abs=1e-5)


def test_it_travels_without_its_weights_and_loads_them_once(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    monkeypatch.setattr(
        reward_models, "load_classifier", lambda path, dtype: loads.append(path) or load_classifier(path, dtype)
    )
    reward_models._loaded.cache_clear()
    first = RewardModel(single)
    assert len(pickle.dumps(first)) < 1000
    assert loads == []
    again = pickle.loads(pickle.dumps(first))
    assert first(["w1"], ["w2"]) == again(["w1"], ["w2"]) == again(["w1"], ["w2"])
    assert loads == [single]


def test_several_labels_need_a_name(several: Path) -> None:
    with pytest.raises(SpecError, match=r"has 3 labels: name the rewarded one as `label`: bad, neutral, good"):
        RewardModel(several).check()
    with pytest.raises(SpecError, match=r"no label 'god'; did you mean 'good'\?"):
        RewardModel(several, label="god").check()
    made = RewardModel(several, label="good")(["w1 w2"], ["w3"])
    assert made == pytest.approx([float(alone(several, "w1 w2 w3").softmax(-1)[2])], abs=1e-6)


@pytest.mark.parametrize(
    ("problem", "of"), [("regression", lambda x: x), ("multi_label_classification", lambda x: x.sigmoid())]
)
def test_what_the_model_was_trained_for_says_what_a_label_is_worth(tmp_path: Path, problem: str, of) -> None:
    path = build_classifier_dir(tmp_path / "reward", labels=("helpful", "short"), problem_type=problem)
    made = RewardModel(path, label="short")(["w1 w2"], ["w3"])
    assert made == pytest.approx([float(of(alone(path, "w1 w2 w3"))[1])], abs=1e-6)


def test_chat_needs_a_template_and_reads_it(single: Path, tmp_path: Path) -> None:
    for act in (RewardModel(single, chat=True).check, lambda: RewardModel(single, chat=True)(["w1"], ["w2"])):
        with pytest.raises(SpecError, match=r"has no chat template; leave out `chat`, or write the texts"):
            act()
    path = build_classifier_dir(tmp_path / "reward")
    template = "{% for m in messages %}{{ 'w5 ' if m.role == 'user' else 'w6 ' }}{{ m.content }} {% endfor %}"
    (path / "chat_template.jinja").write_text(template)
    made = RewardModel(path, chat=True)
    made.check()
    assert made(["w1"], ["w2"]) == pytest.approx([float(alone(path, "w5 w1 w6 w2"))], abs=1e-5)


def test_texts_that_are_too_long_are_counted_and_never_cut(single: Path) -> None:
    completions = ["w1 " * 10, "w2 " * 64, "w3 " * 90]
    with pytest.raises(
        DataError, match=r"2 of 3 texts are longer than the 64 tokens .* \(the longest 91\); none is cut"
    ):
        RewardModel(single)(["w0"] * 3, completions)
    with pytest.raises(DataError, match="3 of 3 texts are longer than the 5 tokens"):
        RewardModel(single, max_tokens=5)(["w0"] * 3, completions)
    assert len(RewardModel(single)(["w0"], ["w1 " * 63])) == 1


def test_an_empty_completion_is_scored_and_a_text_without_a_token_refused(single: Path) -> None:
    assert RewardModel(single)(["w1"], [""]) == pytest.approx([float(alone(single, "w1"))], abs=1e-5)
    with pytest.raises(DataError, match=r"text 1 is empty \(1 such\)"):
        RewardModel(single)(["w1", ""], ["", ""])
    assert RewardModel(single)([], []) == []


def test_without_a_padding_token_texts_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = build_classifier_dir(tmp_path / "reward")
    prompts, completions = texts(5)
    wanted = RewardModel(path)(prompts, completions)
    for name in ("config.json", "tokenizer_config.json"):
        held = json.loads((path / name).read_text())
        held.pop("pad_token", None)
        held.pop("pad_token_id", None)
        (path / name).write_text(json.dumps(held))
    reward_models._loaded.cache_clear()
    assert RewardModel(path)(prompts, completions) == pytest.approx(wanted, abs=1e-5)


def test_other_models_and_weights_that_could_run_code_are_refused(tmp_path: Path, single: Path) -> None:
    build_model_dir(tmp_path / "causal")
    with pytest.raises(CheckpointError, match="is a LlamaForCausalLM, no reward model"):
        RewardModel(tmp_path / "causal").check()
    pickled = build_classifier_dir(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        build_reward(ModelReward(reward_model="pickled"), tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        build_reward(ModelReward(reward_model="/nowhere/reward"), tmp_path)


def test_a_score_that_is_no_number_names_its_row(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = reward_models._loaded(single, "float32", None)
    monkeypatch.setattr(model.score, "weight", torch.nn.Parameter(model.score.weight * float("nan")))
    with pytest.raises(DataError, match="reward 'proxy', row 0: expected a finite number, got nan"):
        rewards_of("proxy", RewardModel(single), ["w1"], ["w2"])


def test_the_pocket_proxy_keeps_its_numbers() -> None:
    """Against the form it had before reward models were shared, to the bit."""
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    pairs = pocket.preferences()[:150]
    prompts = [pair["prompt"] for pair in pairs]
    completions = ["", "unheard", *(f" {pair['chosen']} " for pair in pairs[2:])]
    path = pocket.proxy_path()
    model = LlamaForSequenceClassification.from_pretrained(path, dtype=torch.float32, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    joint = [f"{p.strip()} {c.strip()}{tokenizer.eos_token}" for p, c in zip(prompts, completions)]
    order = sorted(range(len(joint)), key=lambda at: len(joint[at].split()))
    wanted = [0.0] * len(joint)
    for first in range(0, len(order), 128):
        chosen = order[first : first + 128]
        encoded = tokenizer([joint[at] for at in chosen], padding=True, padding_side="right", return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        for at, value in zip(chosen, logits[:, 0].tolist()):
            wanted[at] = value
    assert pickle.loads(pickle.dumps(ProxyReward(path)))(prompts, completions, extra=1) == wanted
