"""The learned proxy reward: a small sequence classifier, loaded at its first use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..measuring.reward_models import RewardModel
from .language import END


class ProxyReward:
    """Scores reviews with the pocket world's reward model.

    Args:
        directory: Of the reward model and its tokenizer.
    """

    __name__ = "proxy"  # TRL names its metrics after the reward

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._model = RewardModel(directory, template=f"{{prompt}} {{completion}}{END}", batch_size=128, device="cpu")

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One number a completion; further columns, which TRL passes, are ignored."""
        return self._model([text.strip() for text in prompts], [text.strip() for text in completions])
