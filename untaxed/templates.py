"""Templates: how a row becomes a text, with the row's fields in braces and nothing else there."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from .errors import nearest


def check_template(template: str) -> str:
    """Returns a template whose braces hold names of fields alone.

    Python's own format would also take attributes (``{prompt.__class__}``), positions, conversions and widths.

    Raises:
        ValueError: It holds something else, or its braces do not close; what it is, is named.
    Example:
        >>> check_template("The capital of {country} is")
        'The capital of {country} is'
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{template!r} cannot be filled in: {error}; a brace itself is written twice") from None
    for _, field, width, conversion in parts:
        if field is None:
            continue
        whole = f"{{{field}{f'!{conversion}' if conversion else ''}{f':{width}' if width else ''}}}"
        if not field or field.isdecimal() or set(field) & set(".[]{}") or width or conversion:
            raise ValueError(
                f"{whole} is no plain name of a field, such as {{prompt}}; `columns` renames and steps into mappings"
            )
    return template


def filled(template: str, row: Mapping[str, Any]) -> str:
    """A checked template with a row's values, each as a text; a null counts as absent.

    Raises:
        ValueError: The row has no such field.
    Example:
        >>> filled("{a} and {b}", {"a": 1, "b": "two"})
        '1 and two'
    """
    found = {name: str(value) for name, value in row.items() if value is not None}
    try:
        return template.format_map(found)
    except KeyError as error:
        name = str(error.args[0])
        if name in row:
            raise ValueError(f"template: column {name!r} is null") from None
        raise ValueError(f"template: no column {name!r}{nearest(name, row)}") from None
