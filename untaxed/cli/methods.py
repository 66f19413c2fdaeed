"""``untaxed methods``: the methods' table, or one method's card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .outcome import one_line_errors, print_json

if TYPE_CHECKING:
    from ..method import Method


@one_line_errors
def command(
    name: Annotated[str | None, typer.Argument(help="A method; none: the table.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE: says what these settings come to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the remedies, or say what one does, when it acts and what it can be set to.

    Example: untaxed methods elastic_reset decay=0.995 reset_every=17
    """
    from .. import methods

    if name and settings:
        method = methods.build(name, _parsed(settings))
        told = {"name": name, "settings": method.settings(), "told": method.tell()}
        if as_json:
            print_json(told)
        else:
            typer.echo(f"{name}: {method.tell() or 'fits; there is nothing to say about these settings in numbers'}")
        return

    cards = [_card(method) for method in ([methods.get(name)] if name else methods.rows().values())]
    if as_json:
        print_json(cards[0] if name else cards)
    elif name:
        _print_card(cards[0])
    else:
        _print_table(cards)


def _parsed(settings: list[str]) -> dict[str, Any]:
    import yaml

    from ..errors import SpecError

    values = {}
    for one in settings:
        key, equals, value = one.partition("=")
        if not equals:
            raise SpecError(f"a setting is given as KEY=VALUE, got {one!r}")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SpecError(f"{key}: {value!r} is no value") from None
    return values


def _card(method: type[Method]) -> dict[str, Any]:
    import dataclasses
    import inspect

    settings = [
        {
            "name": field.name,
            "type": field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type)),
            "default": None if field.default is dataclasses.MISSING else field.default,
            "required": field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        }
        for field in dataclasses.fields(method)
        if field.name not in method.given_elsewhere
    ]
    return {
        "name": method.name,
        "title": method.title,
        "summary": method.summary,
        "source": method.source,
        "acts": sorted(method.acts),
        "needs": sorted(method.needs),
        "settings": settings,
        "description": inspect.getdoc(method) or "",
    }


def _print_table(cards: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for heading in ("acts", "needs", "settings", "what it does"):
        table.add_column(heading, overflow="fold")
    for card in cards:
        settings = ", ".join(setting["name"] for setting in card["settings"])
        acts, needs = (", ".join(card[key]) or "-" for key in ("acts", "needs"))
        table.add_row(card["name"], acts, needs, settings or "-", card["summary"])
    Console().print(table)


def _print_card(card: dict[str, Any]) -> None:
    typer.echo(f"{card['name']}: {card['title']}\n")
    typer.echo(card["description"] + "\n")
    typer.echo(f"acts      {', '.join(card['acts']) or 'nowhere: it trains nothing of its own'}")
    typer.echo(f"needs     {', '.join(card['needs']) or 'nothing more'}")
    for setting in card["settings"]:
        tail = "required" if setting["required"] else f"default {setting['default']}"
        typer.echo(f"setting   {setting['name']}: {setting['type']}, {tail}")
    typer.echo(f"source    {card['source']}")
