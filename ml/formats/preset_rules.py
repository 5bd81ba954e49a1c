"""Chooses a preset of a method's params by the facts of a data set, for a training without params.

A rule is `{"fact": name, "below": bound, "preset": name}`. Methods state their rules in `ABOUT`; the catalog publishes
them, so the service and the command line choose alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def choose_preset(
    rules: Iterable[Mapping[str, Any]], presets: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The params of the preset that the first matching rule names.

    Args:
        rules: A rule matches where the data set's fact is a number below the bound.
        presets: Params of each preset by its name.
        facts: Facts of the data set by name; a missing one matches no rule.

    Returns:
        The preset's params; {} (the defaults) where no rule matches.
    """
    for rule in rules:
        fact = facts.get(rule["fact"])
        if isinstance(fact, int | float) and fact < rule["below"]:
            return dict(presets[rule["preset"]])
    return {}
