"""What is shipped: sizes, abilities, preferences, the task; and that a build repeats."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch

from untaxed import pocket
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.measuring import measure
from untaxed.measuring.subject import Subject
from untaxed.pocket import _build, documents
from untaxed.pocket.sentiment import gold
from untaxed.pocket.training import Stage
from untaxed.pocket.world import DATA, REPORT, SELECT

LEAST = {"facts": 0.95, "translation": 0.9, "arithmetic": 0.9, "reading": 0.7}
HARDER = ("facts_rare", "pivot", "arithmetic_hard", "reading_hard")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def initial():
    suite = pocket.suite(count=400)
    path = pocket.initial_path()
    return Subject(load_model(path), load_tokenizer(path), suite)


def test_shipped_files_are_small():
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".gz"}


def test_initial_has_the_abilities_stated(initial):
    found = measure(initial, "test", ["abilities"]).values["abilities"]
    assert set(found) == {*LEAST, *HARDER} == {*SELECT, *REPORT}
    for name, least in LEAST.items():
        assert found[name] >= least, name
    for name in HARDER:
        assert 0.4 - 0.05 <= found[name] <= 0.8 + 0.05, name  # of 400 questions; 0.4 to 0.8 of all


def test_initial_writes_well_formed_reviews_and_the_proxy_agrees_with_gold(initial):
    texts = measure(initial, "validation", ["reward"]).texts
    golds = torch.tensor([row["gold"] for row in texts])
    proxies = torch.tensor([row["proxy"] for row in texts])
    assert 0.35 < golds.mean() < 0.55
    assert torch.corrcoef(torch.stack([golds, proxies]))[0, 1] > 0.8


def test_pretrained_differs_from_initial_and_has_its_shape():
    pretrained, initial = load_model(pocket.pretrained_path()), load_model(pocket.initial_path())
    other = dict(initial.named_parameters())
    for name, tensor in pretrained.named_parameters():
        assert tensor.shape == other[name].shape
        assert not torch.equal(tensor, other[name]) or tensor.ndim == 1
    assert 400_000 <= initial.num_parameters() <= 1_000_000


def test_preferences_are_pairs_of_different_reviews():
    rows = pocket.preferences()
    assert len(rows) >= 2000
    assert all(row["chosen"] != row["rejected"] and row["chosen"] and row["rejected"] for row in rows)
    asked = set(pocket.task(count=8).prompts)
    assert {row["prompt"] for row in rows} <= asked
    better = sum(gold(row["chosen"]) > gold(row["rejected"]) for row in rows) / len(rows)
    assert 0.7 < better < 0.95  # annotators err


def test_task_names_what_exists():
    task = pocket.task(count=8)
    assert (task.initial, task.pretrained) == (pocket.initial_path(), pocket.pretrained_path())
    assert set(task.arguments) == {"dpo", "ipo", "kto", "rloo", "grpo"}
    assert {one.key for one in task.suite.group("reward")} == {"reward.gold", "reward.proxy"}
    good, bad = (
        "the look was lovely and the feel was warm . i give 8 .",
        "the look was awful and the feel was cold . i give 1 .",
    )
    high, low = task.reward(task.prompts[:2], [good, bad])
    assert high > low
    splits = [set(task.prompts), *map(set, task.suite.prompts.values())]
    assert len(set.union(*splits)) == sum(map(len, splits))


def test_light_import():
    code = "import sys, untaxed.pocket; assert not {'transformers', 'trl', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's reward trainer on transformers 5
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_build_gives_the_same_bytes_twice(tmp_path):
    recipe = _build.Recipe(
        pretraining=(
            Stage("copying", documents.COPYING, 2, 1e-3, rows=2),
            Stage("raw", documents.PRETRAINING, 2, 1e-3),
        ),
        sft=Stage("sft", documents.SFT, 2, 1e-3, rows=2),
        width=32,
        pairs=12,
        proxy_epochs=1,
    )
    outs = [_build.build(tmp_path / name, recipe=recipe) for name in ("first", "second")]
    files = sorted(path.relative_to(outs[0]) for path in outs[0].rglob("*") if path.is_file())
    assert Path("preferences.jsonl.gz") in files
    for file in files:
        assert (outs[0] / file).read_bytes() == (outs[1] / file).read_bytes(), file


def test_missing_model_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("untaxed.pocket.world.DATA", tmp_path)
    with pytest.raises(pocket.world.CheckpointError, match="untaxed pocket build"):
        pocket.initial_path()


def test_the_proxy_reward_loads_without_a_bar(capfd: pytest.CaptureFixture[str]) -> None:
    from untaxed.pocket import rewards

    rewards._load.cache_clear()
    pocket.task().reward(["the film was"], [" good"])  # type: ignore[misc]
    assert capfd.readouterr().err == ""
