"""Two causal language models that write as one: their logits are mixed at every token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ._logits import check_share, mix_logits


@dataclass
class MixedCache:
    """The key-value caches of both models, gone through together; None for a model that is not run."""

    initial: Any
    aligned: Any

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows of both, in their order."""
        for cache in (self.initial, self.aligned):
            if cache is not None:
                cache.batch_select_indices(indices)


@dataclass
class MixedOutput:
    """What a forward pass gives: the mixed logits, and the caches where they were asked for."""

    logits: Tensor
    past_key_values: MixedCache | None


class LogitMixture(nn.Module):
    """A causal language model made of two: every forward pass runs both and mixes their logits (`mix_logits`).

    It has no weights of its own to save. At the ends of the share one model alone is run, and the logits are its own.

    Args:
        initial: A causal language model of transformers.
        aligned: Another over the same vocabulary, on the same device.
        initial_share: Of the initial model's logits, in [0, 1].
    Raises:
        ValueError: The vocabularies differ in size, or the share is no number in [0, 1].
    """

    def __init__(self, initial: nn.Module, aligned: nn.Module, initial_share: float) -> None:
        super().__init__()
        check_share(initial_share)
        self.initial, self.aligned, self.initial_share = initial, aligned, initial_share
        configs: list[Any] = [model.config for model in (initial, aligned)]
        sizes = [config.get_text_config().vocab_size for config in configs]
        if sizes[0] != sizes[1]:
            raise ValueError(f"logits can be mixed over one vocabulary; initial has {sizes[0]}, aligned {sizes[1]}")

    @property
    def config(self) -> Any:
        """That of the aligned model."""
        return self.aligned.config

    @property
    def parts(self) -> list[nn.Module]:
        """The models that are run."""
        ends = {0: [self.aligned], 1: [self.initial]}
        return ends.get(self.initial_share, [self.initial, self.aligned])  # type: ignore[call-overload]

    @property
    def _is_stateful(self) -> bool:
        """As transformers says of a model whose cache cannot be handed to several rows."""
        return any(getattr(model, "_is_stateful", False) for model in self.parts)

    def forward(self, past_key_values: MixedCache | None = None, **inputs: Any) -> MixedOutput:
        """Runs the models on the same tokens; ``past_key_values`` is what an earlier pass gave."""

        def run(model: nn.Module, cache: Any) -> tuple[Tensor, Any]:
            output = model(past_key_values=cache, **inputs)
            return output.logits, output

        return self.mixed(run, past_key_values)

    def mixed(self, run: Callable[[nn.Module, Any], tuple[Tensor, Any]], cache: MixedCache | None) -> MixedOutput:
        """Mixes what `run` reads of each model, given its own cache: logits, of some places or all, and its output."""
        logits, caches = [], dict[str, Any](initial=None, aligned=None)
        for name in caches:
            if (model := getattr(self, name)) in self.parts:
                read, output = run(model, None if cache is None else getattr(cache, name))
                logits.append(read)
                caches[name] = getattr(output, "past_key_values", None)
        kept = sum(one is not None for one in caches.values()) == len(self.parts)
        mixed = logits[0] if len(logits) == 1 else mix_logits(*logits, initial_share=self.initial_share)
        return MixedOutput(mixed, MixedCache(**caches) if kept else None)
