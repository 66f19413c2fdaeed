"""What the translation game is played with: the data, the spelling, two small translators and their pretraining."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PAD, BOS, EOS = 0, 1, 2
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
FILES = {"fr": "tatoeba_en_fr", "de": "tatoeba_en_de"}


@dataclass(frozen=True)
class Settings:
    """Every number of the game; learning rates are Adam's."""

    vocabulary: int = 2000  # BPE pieces a language
    size: int = 128  # of embeddings and states
    max_words: int = 8  # longer pairs are left out
    max_tokens: int = 14  # of a sentence and of a message
    dropout: float = 0.1  # in pretraining only
    sender_pretraining_steps: int = 3600
    receiver_pretraining_steps: int = 2500
    pretraining_batch: int = 48
    pretraining_rate: float = 2e-3
    steps: int = 300  # of the game
    batch: int = 24  # French sentences a step
    samples: int = 2  # messages a sentence
    sender_rate: float = 3e-4
    receiver_rate: float = 2e-4
    entropy: float = 0.01
    reset_every: int = 100
    update_every: int = 2  # steps between updates of the average
    evaluate_every: int = 50

    def of_pretraining(self) -> dict[str, Any]:
        """Those that the pretrained models depend on."""
        game = {"steps", "batch", "samples", "sender_rate", "receiver_rate", "entropy", "reset_every", "update_every"}
        return {name: value for name, value in asdict(self).items() if name not in game | {"evaluate_every"}}


class Problem(Exception):
    """What was given is wrong: what, where, and the remedy, in one line."""


# ---- data


class Heldout(NamedTuple):
    """Sentences to be judged on: the French, and all their English and German translations."""

    french: list[str]
    english: list[list[str]]
    german: list[list[str]]


class Corpus(NamedTuple):
    """Pretraining pairs of disjoint English, the game's French-German pairs, and what is held out."""

    to_english: list[tuple[str, str]]
    to_german: list[tuple[str, str]]
    game: list[tuple[str, str]]
    heldout: dict[str, Heldout]
    digest: str


def read_pairs(directory: Path, language: str, max_words: int) -> tuple[dict[str, dict[str, list[str]]], str]:
    """Split -> English sentence -> its translations, lower-cased, and the file's checksum."""
    name = f"{FILES[language]}.jsonl.gz"
    path = next((p for p in (directory / name, directory / FILES[language] / name) if p.is_file()), None)
    if path is None:
        raise Problem(f"no {name} in {directory} or its folder {FILES[language]}; the docstring says what it holds")
    pairs: dict[str, dict[str, list[str]]] = {split: defaultdict(list) for split in ("train", "valid", "test")}
    content = path.read_bytes()
    try:
        for line in gzip.decompress(content).decode().split("\n"):
            row = json.loads(line) if line else {"split": "train", "en": "", language: ""}
            english, other = (" ".join(row[key].lower().split()) for key in ("en", language))
            if english and other and max(len(english.split()), len(other.split())) <= max_words:
                pairs[row["split"]][english].append(other)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem(f"{path} is no gzipped JSON lines with split, en and {language}: {error!r}") from None
    return pairs, hashlib.sha256(content).hexdigest()


def read_corpus(directory: Path, max_words: int) -> Corpus:
    """Joins both files on equal English sentences: every other one is the game's, the rest is for pretraining."""
    (french, french_digest), (german, german_digest) = (read_pairs(directory, code, max_words) for code in FILES)
    shared = {split: [english for english in french[split] if english in german[split]] for split in french}
    if not all(shared.values()):
        raise Problem(
            f"the two files in {directory} share no English sentence in some split; take both from one sample"
        )
    playing = dict.fromkeys(shared["train"][::2])  # a set that keeps its order
    to_english = [(f, e) for e, all_f in french["train"].items() if e not in playing for f in all_f]
    to_german = [(e, g) for e, all_g in german["train"].items() if e not in playing for g in all_g]
    game = [
        (f, german["train"][e][i % len(german["train"][e])]) for e in playing for i, f in enumerate(french["train"][e])
    ]
    seen = {f for f, _ in to_english} | {f for f, _ in game}
    heldout = {split: _heldout(french[split], german[split], shared[split], seen) for split in ("valid", "test")}
    return Corpus(to_english, to_german, game, heldout, french_digest + german_digest)


def _heldout(french: Any, german: Any, shared: Iterable[str], seen: set[str]) -> Heldout:
    """One French sentence for each English one, none that training has seen; all English of that French counts."""
    back = defaultdict(list)
    for english, translations in french.items():
        for translation in translations:
            back[translation].append(english)
    kept = [(next((f for f in french[e] if f not in seen), None), e) for e in shared]
    chosen = {f: e for f, e in kept if f is not None}
    return Heldout(list(chosen), [back[f] for f in chosen], [german[e] for e in chosen.values()])


class Speller:
    """Text to padded token ids and back, for one language: byte-pair pieces learned from its sentences."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens, self.size = tokenizer, max_tokens, tokenizer.get_vocab_size()

    @classmethod
    def learn(cls, sentences: Iterable[str], settings: Settings) -> Speller:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
        )
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=settings.vocabulary, special_tokens=SPECIALS, show_progress=False)
        tokenizer.train_from_iterator(sentences, trainer)
        return cls(tokenizer, settings.max_tokens)

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """(sentences, max_tokens), each ended by EOS, then PAD."""
        ids = torch.full((len(sentences), self.max_tokens), PAD)
        for row, encoding in zip(ids, self.tokenizer.encode_batch(list(sentences))):
            pieces = [*encoding.ids[: self.max_tokens - 1], EOS]
            row[: len(pieces)] = torch.tensor(pieces)
        return ids

    def decode(self, ids: Tensor) -> list[str]:
        return self.tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)


def trim(ids: Tensor) -> Tensor:
    """Without the columns that are padding in every row."""
    return ids[:, : int((ids != PAD).sum(1).max())]


def alike(ids: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices of random rows of about the same length: little padding to compute on."""
    order = ((ids != PAD).sum(1) + 2 * torch.rand(len(ids), generator=generator)).argsort()
    start = int(torch.randint(max(1, len(ids) - count + 1), (1,), generator=generator))
    return order[start : start + count]


# ---- models


class Translator(nn.Module):
    """Sequence to sequence: a GRU each way and "general" attention, which the output alone sees."""

    def __init__(self, source_vocabulary: int, target_vocabulary: int, size: int, dropout: float) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(source_vocabulary, size, padding_idx=PAD)
        self.target_embedding = nn.Embedding(target_vocabulary, size, padding_idx=PAD)
        self.encoder = nn.GRU(size, size, batch_first=True)
        self.decoder = nn.GRU(size, size, batch_first=True)
        self.attention = nn.Linear(size, size, bias=False)
        self.mix = nn.Linear(2 * size, size)
        self.output = nn.Linear(size, target_vocabulary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Log-probabilities of every next token, (batch, target length, vocabulary), under teacher forcing."""
        memory, mask, state = self._encode(source)
        shifted = torch.cat([torch.full_like(target[:, :1], BOS), target[:, :-1]], dim=1)
        return self._decode(shifted, memory, mask, state)[0]

    @torch.no_grad()
    def generate(self, source: Tensor, max_tokens: int, generator: torch.Generator | None = None) -> Tensor:
        """Greedy translations, or samples where there is a generator: (batch, at most max_tokens), padded after EOS."""
        memory, mask, state = self._encode(source)
        token = torch.full_like(source[:, :1], BOS)
        going, tokens = torch.ones_like(token, dtype=torch.bool), []
        while len(tokens) < max_tokens and going.any():
            scores, state = self._decode(token, memory, mask, state)
            scores = scores[:, 0]
            token = (scores.argmax(1, True) if generator is None else _draw(scores.exp(), generator)).where(going, PAD)
            tokens.append(token)
            going = going & (token != EOS)
        return torch.cat(tokens, dim=1)

    def _encode(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask = source != PAD
        memory, _ = self.encoder(self.dropout(self.source_embedding(source)))
        last = memory[torch.arange(len(source)), mask.sum(1) - 1]  # the state at EOS, not at the padding
        return memory, mask, last[None]

    def _decode(self, tokens: Tensor, memory: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden, state = self.decoder(self.dropout(self.target_embedding(tokens)), state)
        scores = self.attention(hidden) @ memory.transpose(1, 2)  # (batch, target length, source length)
        context = scores.masked_fill(~mask[:, None], -1e9).softmax(2) @ memory
        logits = self.output(self.dropout(torch.tanh(self.mix(torch.cat([context, hidden], dim=2)))))
        logits[..., :EOS] = -1e4  # PAD and BOS are never said; finite, so that p log p is 0
        return logits.log_softmax(2), state


def _draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index a row by the inverse of the distribution, (batch, 1): `torch.multinomial` takes a draw an entry."""
    below = probabilities.cumsum(1)
    draw = torch.rand(len(below), 1, generator=generator) * below[:, -1:]
    return torch.searchsorted(below, draw, right=True).clamp_max(below.shape[1] - 1)


def token_nll(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every target token, 0 at padding, and the mask: both (batch, target length)."""
    mask = (target != PAD).float()
    return -scores.gather(2, target[..., None])[..., 0] * mask, mask


def pretrain(model: Translator, source: Tensor, target: Tensor, steps: int, settings: Settings, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.pretraining_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, 2 * (1 - step / steps)))
    model.train()
    for _ in range(steps):
        rows = alike(target, settings.pretraining_batch)
        answer = trim(target[rows])
        nll, mask = token_nll(model(trim(source[rows]), answer), answer)
        descend(nll.sum() / mask.sum(), model, optimizer, clip=5.0)
        schedule.step()
    model.eval()


def descend(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


class World(NamedTuple):
    """What all runs share: data as ids, spellers, and the two pretrained models, which nobody changes."""

    spellers: dict[str, Speller]
    sender: Translator
    receiver: Translator
    french: Tensor
    german: Tensor
    heldout: dict[str, Heldout]


def build_world(corpus: Corpus, settings: Settings, cache: Path) -> World:
    """Learns the pieces and pretrains both models, or takes them from the cache, if that was made from the same."""
    from tokenizers import Tokenizer

    made_from = {"settings": settings.of_pretraining(), "data": corpus.digest}
    saved = torch.load(cache, weights_only=True) if cache.exists() else None
    if saved is not None and saved["made_from"] != made_from:
        raise Problem(f"{cache} was made from other data or settings; give another --out")
    if saved is None:
        sentences = {
            "fr": [f for f, _ in corpus.to_english],
            "en": [e for _, e in corpus.to_english] + [e for e, _ in corpus.to_german],
            "de": [g for _, g in corpus.to_german],
        }
        spellers = {code: Speller.learn(texts, settings) for code, texts in sentences.items()}
    else:
        spellers = {
            code: Speller(Tokenizer.from_str(text), settings.max_tokens) for code, text in saved["spellers"].items()
        }
    torch.manual_seed(0)
    models = {
        name: Translator(spellers[a].size, spellers[b].size, settings.size, settings.dropout).eval()
        for name, a, b in (("sender", "fr", "en"), ("receiver", "en", "de"))
    }
    if saved is None:
        encoded = [
            (spellers[a].encode([p[0] for p in pairs]), spellers[b].encode([p[1] for p in pairs]))
            for pairs, a, b in ((corpus.to_english, "fr", "en"), (corpus.to_german, "en", "de"))
        ]
        pretrain(models["sender"], *encoded[0], settings.sender_pretraining_steps, settings, seed=1)
        pretrain(models["receiver"], *encoded[1], settings.receiver_pretraining_steps, settings, seed=2)
        texts = {code: speller.tokenizer.to_str() for code, speller in spellers.items()}
        weights = {name: model.state_dict() for name, model in models.items()}
        torch.save({"made_from": made_from, "spellers": texts, **weights}, cache.with_suffix(".part"))
        cache.with_suffix(".part").rename(cache)
    else:
        for name, model in models.items():
            model.load_state_dict(saved[name])
    french, german = (spellers[code].encode([p[i] for p in corpus.game]) for i, code in enumerate(("fr", "de")))
    return World(spellers, models["sender"], models["receiver"], french, german, corpus.heldout)
