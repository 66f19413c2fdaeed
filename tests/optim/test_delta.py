from __future__ import annotations

import doctest
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import untaxed
from untaxed.errors import CheckpointError, Unsupported, UsageError
from untaxed.optim import _delta, _difference, _sides
from untaxed.optim._delta import Delta, as_delta, check_delta, plain_name, random_direction, sft_delta

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (10, 4),
    "model.layers.0.up.weight": (8, 4),
    "model.layers.0.down.weight": (4, 8),
    "model.norm.weight": (4,),
    "scale": (),
    "one": (1,),
    "empty": (0, 3),
}
STORAGES = ("dense", "sparse", "memory_mapped")


def weights(seed: int, dtype: torch.dtype = torch.float32, shapes: Mapping = SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def directory(path: Path, tensors: Mapping[str, Tensor], shards: int = 1, **config: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    index = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(tensors)}
    for file in set(index.values()):
        save_file({name: tensor for name, tensor in tensors.items() if index[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def adapter(path: Path, seed: int, rank: int = 2, **config: object) -> Path:
    path.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": rank, "target_modules": ["q", "v"], "base_model_name_or_path": "some/base"}
    (path / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    shapes = {"q.lora_A.weight": (rank, 4), "q.lora_B.weight": (4, rank)}
    tensors = {f"base_model.model.{name}": tensor for name, tensor in weights(seed, shapes=shapes).items()}
    save_file(tensors, path / "adapter_model.safetensors")
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return directory(tmp_path / "sft", weights(1), shards=3), directory(tmp_path / "base", weights(0))


def expected(name: str) -> Tensor:
    return (weights(1)[name] - weights(0)[name]).view(-1)


@pytest.mark.parametrize("storage", STORAGES)
def test_every_way_of_reading_gives_the_difference(pair: tuple[Path, Path], storage: str) -> None:
    delta = sft_delta(*pair, storage=storage)
    assert delta.storage == storage
    assert delta.shapes == SHAPES
    check_delta(delta, SHAPES)
    for name in SHAPES:
        want = expected(name)
        first, second = delta.operands(name)
        assert first.is_contiguous()
        assert first.shape == want.shape
        assert (first if second is None else first - second).equal(want)
        assert (second is None) == (storage == "dense")
        assert delta.dense(name).equal(want)
        assert delta.dense(name, 1, 3).equal(want[1:3])
        assert delta.dense(name, 2).equal(want[2:])
        mask = torch.rand(want.numel()) < 0.5
        assert delta.kept(name, mask).equal(want[mask])
        assert delta.kept(name, mask.nonzero().view(-1).flip(0)).equal(want[mask].flip(0))
        assert delta.kept(name, mask[2:], start=2).equal(want[2:][mask[2:]])
        assert delta.norm(name) == pytest.approx(float(want.double().norm()), rel=1e-12)


def test_parts_join_without_a_seam(monkeypatch: pytest.MonkeyPatch, pair: tuple[Path, Path]) -> None:
    whole = sft_delta(*pair).fingerprint
    monkeypatch.setattr(_difference, "CHUNK", 3)
    test_every_way_of_reading_gives_the_difference(pair, "dense")
    test_every_way_of_reading_gives_the_difference(pair, "memory_mapped")
    assert sft_delta(*pair).fingerprint == whole


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_dtypes_mix(tmp_path: Path, first: torch.dtype, second: torch.dtype) -> None:
    initial, pretrained = weights(1, first), weights(0, second)
    paths = directory(tmp_path / "a", initial), directory(tmp_path / "b", pretrained)
    for delta in (sft_delta(*paths), sft_delta(*paths, storage="memory_mapped"), sft_delta(initial, pretrained)):
        for name in SHAPES:
            want = (initial[name].float() - pretrained[name].float()).view(-1)
            one, other = delta.operands(name)
            assert one.dtype in (torch.float32, torch.bfloat16)
            assert (one if other is None else one.float() - other.float()).equal(want)
            assert delta.dense(name).equal(want)


def test_mapped_operands_are_views_of_the_files(tmp_path: Path) -> None:
    paths = [directory(tmp_path / str(seed), weights(seed, torch.bfloat16)) for seed in (1, 0)]
    delta = sft_delta(*paths, storage="memory_mapped")
    first, again = delta.operands("one"), delta.operands("one")
    assert [tensor.data_ptr() for tensor in first] == [tensor.data_ptr() for tensor in again]
    assert first[0].dtype == first[1].dtype == torch.bfloat16


def test_bfloat16_halves_the_dense_delta(pair: tuple[Path, Path]) -> None:
    delta = sft_delta(*pair, dtype=torch.bfloat16)
    for name in SHAPES:
        operand, none = delta.operands(name)
        assert none is None
        assert operand.equal(expected(name).bfloat16())
    for wrong in ({"dtype": torch.float16}, {"dtype": torch.bfloat16, "storage": "sparse"}):
        with pytest.raises(UsageError, match="dtype is that of a dense delta"):
            sft_delta(*pair, **wrong)


class Net(nn.Module):
    def __init__(self, seed: int, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("places", torch.arange(5))


def test_modules_give_the_delta_of_their_parameters() -> None:
    initial, pretrained = Net(1), Net(0)
    delta = sft_delta(initial, pretrained)
    assert delta.shapes == {"embed.weight": (5, 3)}
    want = (initial.embed.weight - pretrained.embed.weight).detach().view(-1)
    with torch.no_grad():
        initial.embed.weight.zero_()  # training goes on; the delta stays
    assert delta.dense("embed.weight").equal(want)
    assert delta.dense("head.weight").equal(want)
    assert delta.find("module.head.weight") == "embed.weight"
    for storage in ("sparse", "memory_mapped"):
        with pytest.raises(
            Unsupported, match=r"initial \(a Net\) and pretrained \(a Net\) are in memory; give directories"
        ):
            sft_delta(initial, pretrained, storage=storage)
    with pytest.raises(Unsupported, match="meta device"):
        sft_delta(Net(1).to("meta"), pretrained)


def test_tied_weights_of_directories(tmp_path: Path) -> None:
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    one, other = weights(1), weights(0)
    tied = directory(tmp_path / "tied", one, tie_word_embeddings=True)
    plain = directory(tmp_path / "head", {head: other.pop(embed), **other}, tie_word_embeddings=True)
    delta = sft_delta(tied, plain)  # one stores the embedding, the other the head
    assert delta.dense(embed).equal(expected(embed))
    assert delta.dense(head).equal(expected(embed))
    check_delta(delta, {head: (10, 4), embed: (10, 4)})


def test_wrapped_names_are_understood(pair: tuple[Path, Path]) -> None:
    delta = sft_delta(*pair)
    layer = "model.layers.0.up.weight"
    for name in (
        f"module.{layer}",
        f"module._orig_mod.{layer}",
        f"_orig_mod.module.{layer}",
        "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.up.weight",
        f"base_model.model.{layer}",
    ):
        assert plain_name(name) == layer
        assert delta.dense(name).equal(expected(layer))
        check_delta(delta, {name: (8, 4)})
    for kept in ("model.module.weight", "modulelist.weight", "default.weight", "model.default.weight"):
        assert plain_name(kept) == kept
    for given, plain in {
        "base_model.model.x.lora_A.default.weight": "x.lora_A.weight",
        "base_model.model.x.lora_embedding_B.default": "x.lora_embedding_B",
        "base_model.model.x.lora_magnitude_vector.default.weight": "x.lora_magnitude_vector",
        "base_model.model.lm_head.modules_to_save.default.weight": "lm_head.weight",
    }.items():
        assert plain_name(given) == plain


def test_adapter_names_are_those_that_peft_stores(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        config = peft.LoraConfig(
            r=2, target_modules=["0", "1"], modules_to_save=["2"], use_dora=seed < 0, init_lora_weights=False
        )
        return peft.PeftModel(net, config)

    for seed in (0, 1):
        made(seed).save_pretrained(tmp_path / str(seed))
    policy = made(1)
    trained = {name: tuple(p.shape) for name, p in policy.named_parameters() if p.requires_grad}
    delta = sft_delta(tmp_path / "1", tmp_path / "0", storage="memory_mapped")
    check_delta(delta, trained)
    assert {plain_name(name) for name in trained} == set(delta.shapes)
    ours, theirs = ({plain_name(n): p for n, p in made(seed).named_parameters()} for seed in (1, 0))
    for name in delta.shapes:
        assert delta.dense(name).equal((ours[name] - theirs[name]).detach().view(-1)), name


def test_adapters_on_one_base(tmp_path: Path) -> None:
    delta = sft_delta(adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 0, target_modules=["v", "q"]))
    assert delta.adapter
    check_delta(delta, {"base_model.model.q.lora_A.default.weight": (2, 4)})
    assert delta.dense("base_model.model.q.lora_A.default.weight").abs().sum() > 0
    with pytest.raises(Unsupported, match="merge both adapters into their base"):
        check_delta(delta, {"model.q.weight": (4, 4)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 3}, "r is 2 in initial and 3 in pretrained"),
        ({"target_modules": ["q"]}, r"target_modules is \['q', 'v'\] in initial and \['q'\] in pretrained"),
        (
            {"base_model_name_or_path": "other/base"},
            "base_model_name_or_path is 'some/base' in initial and 'other/base'",
        ),
    ],
)
def test_adapters_of_different_forms_are_refused(tmp_path: Path, config: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sft_delta(adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 0, **config))


def test_only_one_adapter_is_refused_with_two_ways_out(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    lora = adapter(tmp_path / "lora", 1)
    ways = "train the SFT stage as an adapter .* or merge the adapter"
    with pytest.raises(Unsupported, match=f"initial .*lora is a LoRA adapter and pretrained .*base is not.*{ways}"):
        sft_delta(lora, pair[1])
    with pytest.raises(Unsupported, match=ways):
        sft_delta(pair[0], lora)
    with pytest.raises(
        Unsupported, match=f"the policy trains a LoRA adapter and the delta is of whole weights; .*{ways}"
    ):
        check_delta(sft_delta(*pair), {"base_model.model.q.lora_A.default.weight": (2, 4)})
    other = adapter(tmp_path / "ia3", 0, peft_type="IA3"), adapter(tmp_path / "ia3b", 1, peft_type="IA3")
    with pytest.raises(Unsupported, match="an adapter of type IA3"):
        sft_delta(*other)


def test_everything_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    one, other = weights(1), weights(0)
    one["model.embed_tokens.weight"] = torch.randn(13, 4)
    other["model.norms.weight"] = other.pop("model.norm.weight")
    one["codes"] = other["codes"] = torch.zeros(2, dtype=torch.int8)
    delta = sft_delta(directory(tmp_path / "a", one), directory(tmp_path / "b", other))
    trained = {
        **{name: tuple(tensor.shape) for name, tensor in one.items()},
        "scale": (2,),
        "model.layers.0.upp.weight": (8, 4),
    }
    with pytest.raises(UsageError) as caught:
        check_delta(delta, trained)
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        "'model.embed_tokens.weight' has 13 rows in initial and 10 in pretrained: rows 10 to 12 have no counterpart",
        "'model.norm.weight' is missing from pretrained (did you mean 'model.norms.weight'?)",
        "'codes' is int8 in initial, not a floating-point weight",
        "'scale' has shape (2,) in the trained model and () in the delta",
        "'model.layers.0.upp.weight' has no delta (did you mean 'model.layers.0.up.weight'?)",
    ):
        assert part in text
    check_delta(delta, {"one": (1,)})  # what is not trained may differ
    with pytest.raises(UsageError, match="rows 10 to 12 have no counterpart"):
        delta.operands("model.embed_tokens.weight")
    with pytest.raises(UsageError, match=r"has 12 rows in the trained model and 8 in the delta: rows 8 to 11"):
        check_delta(delta, {"model.layers.0.up.weight": (12, 4)})


def many(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{number}.weight": (width, 2) for number in range(10)}


def test_another_architecture_is_one_line(tmp_path: Path) -> None:
    llama = directory(tmp_path / "a", weights(1, shapes=many("layers", 4)))
    gpt2 = directory(tmp_path / "b", weights(0, shapes=many("blocks", 4)), model_type="gpt2")
    with pytest.raises(
        UsageError, match=r"a \(llama\) and pretrained .*b \(gpt2\) are of different architectures: they "
    ):
        sft_delta(llama, gpt2)
    large = directory(tmp_path / "c", weights(0, shapes=many("layers", 6)))
    with pytest.raises(
        UsageError, match=r"different sizes: 10 of 10 tensors do not fit, first: 'layers\.0\.weight' has 4 rows"
    ):
        sft_delta(llama, large)
    shapes = {name: shape for name, shape in many("layers", 4).items() if name != "layers.9.weight"}
    shorter = directory(tmp_path / "e", weights(0, shapes=shapes))
    for pair, counts in (((llama, shorter), "10 and 9"), ((shorter, llama), "9 and 10")):
        with pytest.raises(UsageError, match=rf"different architectures: they have {counts} of layers\.\*"):
            sft_delta(*pair)
    delta = sft_delta(llama, directory(tmp_path / "d", weights(0, shapes=many("layers", 4))))
    with pytest.raises(
        UsageError, match=r"10 of 10 trained tensors have no delta, first: 'blocks\.0\.weight' .*llama"
    ) as caught:
        check_delta(delta, many("blocks", 4))
    assert "blocks.1" not in str(caught.value)
    with pytest.raises(UsageError, match="have no delta: 'w' is missing from pretrained"):
        sft_delta({"w": torch.ones(1)}, {"v": torch.ones(1)})


@pytest.mark.parametrize("storage", STORAGES)
def test_a_delta_of_zero_is_refused(tmp_path: Path, pair: tuple[Path, Path], storage: str) -> None:
    with pytest.raises(UsageError, match=r"zero everywhere \(initial .*sft \(llama\) and pretrained .*sft"):
        sft_delta(pair[0], pair[0], storage=storage)
    same = {**weights(1), "one": weights(0)["one"]}
    delta = sft_delta(directory(tmp_path / "same", same), pair[0], storage=storage)
    check_delta(delta, SHAPES)
    with pytest.raises(UsageError, match="zero everywhere"):
        check_delta(delta, {"model.norm.weight": (4,)})  # the trained part is
    with pytest.raises(UsageError, match="zero everywhere"):
        check_delta(as_delta({"w": torch.zeros(3)}), {"w": (3,)})


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_not_finite_is_found_when_first_read(tmp_path: Path, pair: tuple[Path, Path], storage: str) -> None:
    bad = weights(1)
    bad["model.layers.0.up.weight"].view(-1)[[3, 20]] = torch.tensor([math.nan, math.inf])
    delta = sft_delta(directory(tmp_path / "bad", bad), pair[1], storage=storage)
    check_delta(delta, SHAPES)
    delta.operands("model.norm.weight")
    name, message = "model.layers.0.up.weight", r"'model\.layers\.0\.up\.weight' is not finite: 2 of 32 entries"
    for read in (delta.operands, delta.dense, delta.norm, lambda name: delta.kept(name, torch.arange(32))):
        with pytest.raises(UsageError, match=message):
            read(name)
    assert delta.dense(name, 4, 20).isfinite().all()
    assert delta.kept(name, torch.tensor([2, 4])).isfinite().all()
    with pytest.raises(UsageError, match="1 of 16 entries"):
        delta.dense(name, 16)


def test_forms_of_a_delta(pair: tuple[Path, Path]) -> None:
    delta = sft_delta(*pair)
    assert as_delta(delta) is delta
    config = {"initial": str(pair[0]), "pretrained": str(pair[1])}
    assert as_delta(config).dense("one").equal(expected("one"))
    assert as_delta({**config, "storage": "memory_mapped"}).storage == "memory_mapped"
    given = {
        "module.w": torch.randn(4, 3).t(),
        "half": torch.ones(2, dtype=torch.float16),
        "p": nn.Parameter(torch.ones(3)),
    }
    held = as_delta(given)
    assert held.shapes == {"w": (3, 4), "half": (2,), "p": (3,)}
    assert held.dense("w").equal(given["module.w"].reshape(-1))
    assert held.operands("half")[0].dtype == torch.float32
    assert held.operands("p")[0].data_ptr() == given["p"].data_ptr()
    assert not held.operands("p")[0].requires_grad


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "a delta is a Delta, name -> tensor, or initial and pretrained"),
        ({}, "a delta is a Delta"),
        ({"initial": "x"}, "needs both initial and pretrained; pretrained is missing"),
        ({"initial": "x", "pretrain": "y"}, "unknown key 'pretrain' of a delta; did you mean 'pretrained'"),
        ({"initial": "x", "pretrained": "y", "storage": "dens"}, "unknown storage 'dens'; did you mean 'dense'"),
        ({"initial": 3, "pretrained": "y"}, "initial must be a directory, a module or a mapping of tensors, got int"),
    ],
)
def test_what_is_no_delta_is_said(given: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        as_delta(given)


def test_a_directory_that_is_none_is_said(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a model"):
        sft_delta(tmp_path / "nowhere", pair[0])


def test_fingerprints_follow_the_values(pair: tuple[Path, Path]) -> None:
    prints = {sft_delta(*pair, storage=storage).fingerprint for storage in STORAGES}
    prints |= {
        sft_delta(weights(1), weights(0)).fingerprint,
        as_delta({n: expected(n).view(SHAPES[n]) for n in SHAPES}).fingerprint,
    }
    assert len(prints) == 1
    assert sft_delta(*reversed(pair)).fingerprint not in prints
    large = torch.ones(2**20)
    before = as_delta({"w": large}).fingerprint
    assert as_delta({"w": large * 1.001}).fingerprint != before
    large[-1] = 2
    assert as_delta({"w": large}).fingerprint != before


def test_a_random_direction_has_the_norms_and_nothing_else(pair: tuple[Path, Path]) -> None:
    for storage in STORAGES:
        delta = sft_delta(*pair, storage=storage)
        one, same, other = random_direction(delta, 0), random_direction(delta, 0), random_direction(delta, 1)
        check_delta(one, SHAPES)
        for name in reversed(SHAPES):
            same.dense(name)
        for name in SHAPES:
            assert one.norm(name) == pytest.approx(delta.norm(name), rel=1e-6)
            assert one.dense(name).equal(same.dense(name))
            assert one.operands(f"module.{name}")[0].numel() == math.prod(SHAPES[name])
        assert not one.dense("model.norm.weight").equal(other.dense("model.norm.weight"))
        assert one.fingerprint == same.fingerprint != delta.fingerprint
    flat = as_delta({"w": torch.zeros(5), "v": torch.ones(5)})
    assert random_direction(flat, 0).dense("w").tolist() == [0.0] * 5
    large = random_direction(as_delta({"w": torch.ones(100_000)}), 0).dense("w")
    assert abs(float(large.mean())) < 0.02
    assert abs(float(large.pow(4).mean()) - 3) < 0.2  # a Gaussian's kurtosis


MEMORY = """
import sys, torch
from untaxed.optim import sft_delta

def anonymous():
    with open("/proc/self/status") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

sft_delta({"w": torch.ones(9)}, {"w": torch.zeros(9)}).kept("w", torch.arange(3))
before = anonymous()
delta = sft_delta(*sys.argv[1:3], storage=sys.argv[3])
for name in delta.shapes:
    assert delta.kept(name, torch.arange(0, 12_500_000, 1000)).unique().tolist() == [2.0]
print(anonymous() - before)
for name in delta.shapes:
    mask = torch.zeros(delta.shapes[name], dtype=torch.bool)
    mask.view(-1)[::1000] = True
    assert delta.kept(name, mask).unique().tolist() == [2.0]
    assert delta.operands(name)[0][-1] - delta.operands(name)[1][-1] == 2
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize("storage", ["sparse", "memory_mapped"])
def test_a_mapped_delta_takes_no_memory(tmp_path: Path, storage: str) -> None:
    # 2 directories of 4 tensors of 12.5 M bfloat16 entries: 100 MB each, a dense delta of 200 MB
    for name, value in (("sft", 3.0), ("base", 1.0)):
        tensors = {f"w{number}": torch.full((2500, 5000), value, dtype=torch.bfloat16) for number in range(4)}
        directory(tmp_path / name, tensors)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "sft"), str(tmp_path / "base"), storage]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    gathered, all_read = map(int, done.stdout.split())
    assert gathered < 8_000  # kB
    assert all_read < 48_000  # kB: two masks of 12.5 MB are the caller's


def test_it_is_public() -> None:
    assert untaxed.sft_delta is sft_delta
    assert isinstance(sft_delta({"w": torch.ones(1)}, {"w": torch.zeros(1)}), Delta)


@pytest.mark.parametrize("module", [_delta, _sides], ids=lambda module: module.__name__)
def test_examples_run(module: object) -> None:
    failed, tried = doctest.testmod(module, extraglobs={"torch": torch})
    assert tried > 0
    assert failed == 0
