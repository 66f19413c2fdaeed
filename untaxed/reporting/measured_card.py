"""What `untaxed measure` found, as a Hugging Face model card: metadata that the hub reads, and the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import SpecError, require
from .markdown import escaped
from .measured import markdown
from .numbers import Summary

TASK = "text-generation"
METRICS = ("perplexity", "bleu", "chrf")  # statistics that the hub has metrics of the same name for
ACCURACY = "share right"  # the unit of what the hub calls accuracy; an overlap of words or BLEU is none


def card(summary: Summary) -> str:
    """The card of one measured model, to stand as ``README.md`` beside its weights.

    Raises:
        SpecError: Several models were measured; a card is one model's.
        MissingExtra: huggingface_hub is not installed.
    """
    if len(summary["models"]) != 1:
        raise SpecError(f"a model card is that of one model; {len(summary['models'])} were measured")
    hub = require("huggingface_hub", extra="train")
    [entry] = summary["models"]
    data = hub.ModelCardData(
        model_name=entry["name"],
        library_name="transformers",
        tags=["alignment-tax", "untaxed"],
        eval_results=[hub.EvalResult(**one) for one in _results(summary, entry)],
    )
    title = f"# {escaped(entry['name'])}\n\n## What alignment cost\n\n"
    return f"---\n{data.to_yaml()}\n---\n\n{title}{markdown(summary)}"


def _results(summary: Summary, entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One result a number that is known."""
    for measure in summary["measures"]:
        group, name = measure["group"], measure["name"]
        value = (entry[group].get(name) or {}).get("value", {}).get("mean")
        if value is not None:
            yield _result(f"{group}: {name}", _type(measure), measure["unit"], value)
    for name, tax in entry["tax"].items():
        if tax["mean"] is not None:
            what = f"alignment tax, {name} abilities, against {summary['initial']['name']}"
            yield _result(f"{name} abilities", "alignment_tax", what, tax["mean"])


def _type(measure: Mapping[str, Any]) -> str:
    """What the hub calls a metric, where it has a name for it."""
    if measure["group"] == "abilities" and measure["unit"] == ACCURACY:
        return "accuracy"
    return str(measure["statistic"] if measure["statistic"] in METRICS else measure["name"])


def _result(dataset: str, kind: str, name: str, value: float) -> dict[str, Any]:
    source = {"dataset_type": dataset.replace(": ", "_").replace(" ", "_"), "dataset_name": dataset}
    return {
        "task_type": TASK,
        **source,
        "metric_type": kind,
        "metric_name": name,
        "metric_value": round(float(value), 6),
    }
