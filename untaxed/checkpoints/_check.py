"""Checks of a model directory that need neither its weights in memory nor transformers."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import CheckpointError, short
from ._header import read_header
from ._json import read_json
from ._tokens import largest_token

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
LONGEST = 255  # bytes of a file's name
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def check_model_dir(path: str | Path, *, tokenizer: bool = True) -> dict[str, tuple[int, ...]]:
    """Checks that a directory holds a model that can be loaded safely, without loading it.

    Args:
        path: The directory: config.json, safetensors, and a tokenizer.
        tokenizer: Whether a fitting tokenizer must lie beside the weights.
    Returns:
        Shapes by tensor name.
    Raises:
        CheckpointError: What is wrong, in one line: not a model, pickled weights, remote code, a shard that is missing,
            truncated or corrupted, a tokenizer that is missing or too large for the embedding.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a model: there is no such directory")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} is not a model: config.json is missing")
    _refuse_remote_code(path)
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, str] = {}
    for file in weight_files(path):
        for name, entry in read_header(file).items():
            if name in shapes:
                raise CheckpointError(f"{path} holds {name!r} twice, in {files[name]} and in {file.name}")
            shapes[name], files[name] = entry.shape, file.name
    _check_index(path, files)
    if tokenizer:
        _check_tokenizer(path, shapes)
    return shapes


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model directory, in order; every one exists and lies inside it."""
    if (path / INDEX).is_file():
        names = indexed_files(path)
    elif (path / SINGLE).is_file():
        names = [SINGLE]
    elif pickled := [file.name for pattern in PICKLES for file in sorted(path.glob(pattern))]:
        raise CheckpointError(
            f"{path} holds pickled weights ({pickled[0]}), which can run code when loaded; save the model with "
            "save_pretrained(…, safe_serialization=True) and give that directory"
        )
    else:
        raise CheckpointError(f"{path} is not a model: {SINGLE} is missing")
    if absent := [name for name in names if not (path / name).is_file()]:
        raise CheckpointError(f"{path / absent[0]} is missing, but {INDEX} names it")
    return [path / name for name in names]


def indexed_files(path: Path) -> list[str]:
    """The names of the files that an index divides the tensors over, in order; none points outside the directory."""
    names = sorted(set(_weight_map(path).values()))
    for name in names:
        length = len(name.encode(errors="surrogatepass"))
        if Path(name).name != name or not name.endswith(".safetensors") or length > LONGEST:
            what = "which is no safetensors file of this directory"
            raise CheckpointError(f"{path / INDEX} names {short(name, 100)}, {what}")
    if not names:
        raise CheckpointError(f"{path / INDEX} is damaged: it names no file")
    return names


def fingerprint(path: str | Path) -> str:
    """A hash of a model's configuration, weights and tokenizer: equal for equal files, wherever they lie."""
    path = Path(path)
    digest = hashlib.sha256()
    files = {*weight_files(path), path / "config.json"}
    files |= {file for name in (*TOKENIZERS, "tokenizer_config.json") if (file := path / name).is_file()}
    for file in sorted(files):
        with file.open("rb") as stream:
            digest.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _refuse_remote_code(path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        if (path / name).is_file() and "auto_map" in read_json(path / name):
            raise CheckpointError(
                f"{path / name} asks for code of its own (auto_map), which is not run here; where transformers knows "
                "the architecture itself, remove the key auto_map"
            )


def _check_index(path: Path, files: dict[str, str]) -> None:
    """What the index says against the file that each tensor lies in."""
    if not (path / INDEX).is_file():
        return
    places = _weight_map(path)
    if absent := sorted(set(places) - set(files)):
        raise CheckpointError(f"{path / INDEX} names {absent[0]!r}, which no shard holds ({len(absent)} such names)")
    if unlisted := sorted(set(files) - set(places)):
        raise CheckpointError(
            f"{path / files[unlisted[0]]} holds {unlisted[0]!r}, which {INDEX} does not list ({len(unlisted)} such "
            "names), so that nobody knows whether it belongs to the model; save the model again"
        )
    if moved := sorted(name for name in places if places[name] != files[name]):
        raise CheckpointError(
            f"{path / INDEX} says that {moved[0]!r} is in {places[moved[0]]}, and it is in {files[moved[0]]}"
        )


def _weight_map(path: Path) -> dict[str, str]:
    names = read_json(path / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(f"{path / INDEX} is damaged: weight_map is not a mapping of names to files")
    return names


def _check_tokenizer(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    if not any((path / name).is_file() for name in TOKENIZERS):
        raise CheckpointError(f"{path} has no tokenizer; save one beside the model with tokenizer.save_pretrained")
    embedding = [shape[0] for name, shape in shapes.items() if name.endswith(EMBEDDINGS) and len(shape) == 2]
    largest = largest_token(path)
    if embedding and largest is not None and largest >= max(embedding):
        raise CheckpointError(
            f"the tokenizer of {path} does not fit: it has token {largest} and the embedding {max(embedding)} rows"
        )
