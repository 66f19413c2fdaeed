"""The rows that give each block of layers a share of its own: what they find, keep, refuse and leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from untaxed import methods
from untaxed.checkpoints import load_model
from untaxed.errors import DataError, SpecError
from untaxed.merging import average, heterogeneous_average, partition
from untaxed.method import Method
from untaxed.sites import Context, Making, Responses
from untaxed.weights import same

HMA = {"blocks": 2, "samples": 12, "kept": 8, "batch_size": 4, "learning_rate": 0.1}
TWO = {"a": r"layers\.0\.", "b": r"layers\.1\."}
ROWS = [("hma", {**HMA, "initial_share": 0.3}), ("hma_search", {"blocks": 2, "evaluations": 7})]


def moved(weights: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: w + by * torch.randn(w.shape, generator=generator) for name, w in weights.items()}


class Given:
    """A run's making, in memory: answers from a generator, and a judge that is a function of one layer's distance."""

    def __init__(self, initial: Path, folder: Path, by: float = 0.05) -> None:
        self.model = load_model(initial)
        self.initial = {name: w.detach().clone() for name, w in self.model.named_parameters()}
        self.aligned = moved(self.initial, by)
        self.kept: dict[str, Any] | None = None
        self.judged, self.responded, self.told = 0, 0, list[str]()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.aligned[name])
        self.folder = folder

    def making(self) -> Making:
        return Making(
            initial=self.initial,
            aligned=dict(self.model.named_parameters()),
            model=self.model,
            seed=1,
            respond=self.respond,
            judge=self.judge,
            once=self.once,
            folder=self.folder,
            tell=self.told.append,
        )

    def make(self, method: Method) -> dict[str, Tensor]:
        with torch.no_grad():
            return method.make(self.making())

    def respond(self, count: int) -> Responses:
        self.responded += 1
        rows = range(count)
        return Responses([[4 + n % 20] for n in rows], [[5 + n % 7, 2] for n in rows], [float(n % 5) for n in rows])

    def judge(self) -> dict[str, Any]:
        """Reward comes from the last layer alone, tax from the first."""
        self.judged += 1
        weights = dict(self.model.named_parameters())
        first, last = (self.share(weights, f"model.layers.{n}.mlp.up_proj.weight") for n in (0, 1))
        return {"reward": 1 - last, "initial_reward": 0.0, "tax": 1 - first}

    def share(self, weights: dict[str, Any], name: str) -> float:
        """How far one tensor went back to initial."""
        whole = self.aligned[name] - self.initial[name]
        return 1 - float(((weights[name] - self.initial[name]) * whole).sum() / (whole * whole).sum())

    def once(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        self.kept = self.kept or find()
        return self.kept


@pytest.fixture
def given(tiny_initial: Path, tmp_path: Path) -> Given:
    return Given(tiny_initial, tmp_path / "logs")


@pytest.mark.parametrize(("name", "settings"), ROWS)
def test_a_model_that_did_not_move_stays_and_what_was_found_is_an_average(
    name: str, settings: dict[str, Any], tiny_initial: Path, tmp_path: Path, given: Given
) -> None:
    still = Given(tiny_initial, tmp_path / "still", by=0.0)
    still.judge = lambda: {"reward": 1.0, "initial_reward": 0.0, "tax": 0.0}  # type: ignore[method-assign]
    assert same(still.make(methods.build(name, settings)), still.initial)
    made = given.make(methods.build(name, settings))
    assert given.kept is not None
    blocks = partition(given.model, 2)
    rest = given.kept.get("initial_share")
    wanted = heterogeneous_average(given.initial, given.aligned, given.kept["ratios"], blocks, rest_share=rest)
    assert same(made, wanted)


@pytest.mark.parametrize(("name", "settings"), ROWS)
def test_the_model_gets_its_weights_back_and_nothing_is_found_twice(
    name: str, settings: dict[str, Any], given: Given
) -> None:
    before = {name: tensor.clone() for name, tensor in given.initial.items()}
    first = given.make(methods.build(name, settings))
    worked = (given.judged, given.responded)
    assert sum(worked) > 0
    assert given.told
    assert same({n: p.detach() for n, p in given.model.named_parameters()}, given.aligned)
    assert all(parameter.requires_grad for parameter in given.model.parameters())
    assert same(given.initial, before)
    assert same(given.make(methods.build(name, settings)), first)
    assert (given.judged, given.responded) == worked


def test_the_learned_shares_keep_their_mean_and_leave_the_start(given: Given) -> None:
    given.make(methods.build("hma", {**HMA, "initial_share": 0.3}))
    assert given.kept is not None
    ratios = list(given.kept["ratios"].values())
    assert sum(ratios) / 2 == pytest.approx(0.3)
    assert abs(ratios[0] - 0.3) > 0.05
    assert len(given.kept["steps"]) == 4
    assert given.kept["reward_from"] > given.kept["reward_mean"] - 2


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_a_share_need_no_responses(share: float, given: Given) -> None:
    made = given.make(methods.build("hma", {**HMA, "initial_share": share}))
    assert same(made, average(given.initial, given.aligned, initial_share=share))
    assert given.responded == 0


def test_a_search_finds_what_its_goal_asks_for(given: Given) -> None:
    given.make(methods.build("hma_search", {"blocks": 2, "evaluations": 40}))
    assert given.kept is not None
    first, last = given.kept["ratios"].values()
    assert last <= 0.0501
    assert first > 0.8
    assert given.kept["averaging"]["values"]["tax"] > given.kept["values"]["tax"] + 0.5
    assert given.kept["goal"]["reward_at_least"] == pytest.approx(0.95, abs=1e-4)
    assert given.kept["evaluations"] == 40
    assert (given.folder / "evaluations.jsonl").exists()


def test_a_limit_of_tax_is_kept_to(given: Given) -> None:
    given.make(methods.build("hma_search", {"blocks": 2, "goal": "most_reward", "tax_at_most": 0.3}))
    assert given.kept is not None
    assert given.kept["values"]["tax"] <= 0.3
    assert given.kept["values"]["reward"] > 0.9


def test_a_limit_that_nothing_keeps_to_is_said_and_the_nearest_taken(given: Given) -> None:
    row = methods.build("hma_search", {"blocks": 2, "initial_share": 0.6, "evaluations": 12})
    with pytest.warns(UserWarning, match="none of 12 evaluations keeps to reward_at_least = 0.9"):
        given.make(row)
    assert given.kept is not None
    assert given.kept["why"].startswith("none of 12 evaluations")
    assert given.kept["ratios"]["layer 1"] < 0.4


def test_an_undefined_tax_is_a_reason(given: Given) -> None:
    given.judge = lambda: {"reward": 1.0, "initial_reward": 0.0, "tax": None, "why": "no ability"}  # type: ignore[method-assign]
    with pytest.raises(DataError, match="hma_search: tax of the aligned model is undefined: no ability"):
        given.make(methods.build("hma_search", {"blocks": 2}))


@pytest.mark.parametrize(("block", "layer"), [("input", 0), ("output", 1), (1, 1), (0, 0), ("mine", 1)])
def test_one_part_goes_back_and_nothing_else(block: int | str, layer: int, given: Given) -> None:
    blocks: Any = {"mine": r"layers\.1\..*proj"} if block == "mine" else 2
    made = methods.build("part_averaging", {"block": block, "blocks": blocks}).after(given.initial, given.aligned)
    back = {name for name in made if torch.equal(made[name], given.initial[name])}
    assert {name for name in made if f"layers.{layer}." in name and "proj" in name} == {
        name for name in back if "proj" in name
    }
    assert all("proj" in name or torch.equal(made[name], given.aligned[name]) for name in made)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("hma", {"initial_share": 0.2, "kept": 700}, "kept must be at most samples, got 700 of 640"),
        ("hma", {"initial_share": 0.2, "blocks": 0}, "blocks must be a whole number of at least 1, got 0"),
        ("hma", {"initial_share": 0.2, "blocks": {}}, "blocks must be a number, or regular expressions by name"),
        ("hma", {"initial_share": 0.2, "learning_rate": -1}, "learning_rate must be a finite number of at least 0"),
        ("hma", {"initial_share": 0.2, "policies": "mean"}, "hma.policies: should be 'as_average' or 'as_released'"),
        ("hma", {}, "the setting `initial_share` is required"),
        ("hma_search", {"goal": "most_reward"}, "tax_at_most is the limit of the goal most_reward"),
        ("hma_search", {"tax_at_most": 0.1}, "tax_at_most is the limit of the goal most_reward"),
        ("hma_search", {"reward_kept": 2}, r"reward_kept must be in \[0, 1\], got 2"),
        ("part_averaging", {"block": "inptu"}, "there is no block 'inptu'; did you mean 'input'?"),
        ("part_averaging", {"block": 3}, "block must be between 0 and 2, got 3"),
        ("part_averaging", {"block": "middle", "blocks": 2}, "2 blocks have no middle one"),
        ("part_averaging", {"block": "0"}, "no block '0'; known: input, middle, output, or a number from 0 to 2"),
        (
            "part_averaging",
            {"block": "x", "blocks": TWO},
            "no block 'x'; known: a, b, input, middle, output, or a number",
        ),
        ("part_averaging", {"block": "middle", "blocks": TWO}, "2 blocks have no middle one"),
        ("part_averaging", {"block": 2, "blocks": TWO}, "block must be between 0 and 1, got 2"),
    ],
)
def test_wrong_settings_are_one_line(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("?", r"\?")):
        methods.build(name, settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("hma", {"initial_share": 0.2}), ("hma_search", {}), ("part_averaging", {"block": 0})],
)
def test_a_model_that_cannot_be_cut_so_is_refused_before_anything_starts(name: str, settings: dict[str, Any]) -> None:
    shapes = {f"model.layers.{n}.mlp.up_proj.weight": (4, 4) for n in range(2)}
    with pytest.raises(SpecError, match=f"methods: {name}: blocks must be between 1 and the model's 2 layers, got 3"):
        methods.build(name, settings).check(Context("dpo", 10, shapes=shapes))
    methods.build(name, {**settings, "blocks": 2}).check(Context("dpo", 10, shapes=shapes))


def test_a_block_by_its_layers_is_looked_up_in_the_model() -> None:
    context = Context("dpo", 10, shapes={f"h.{n}.mlp.weight": (2, 2) for n in range(3)})
    weights = tuple({name: torch.full(shape, n) for name, shape in context.shapes.items()} for n in (0.0, 1.0))  # type: ignore[union-attr]
    row = methods.build("part_averaging", {"block": "layer 1"})
    row.check(context)
    assert [tensor.mean().item() for tensor in row.after(*weights).values()] == [1, 0, 1]
    with pytest.raises(
        SpecError, match=r"methods: part_averaging: there is no block 'layer 3'; did you mean 'layer 2'"
    ):
        methods.build("part_averaging", {"block": "layer 3"}).check(context)


def test_folders_have_short_names_that_tell_settings_apart() -> None:
    blocks = {f"block {n}": rf"layers\.{n}\." for n in range(30)}
    tags = [
        methods.build("hma", {"initial_share": share, "blocks": given}).tag
        for share in (0.2, 0.4)
        for given in (3, blocks)
    ]
    assert len(set(tags)) == 4
    assert max(map(len, tags)) < 40
    assert tags[0].startswith("hma-0.2-")
