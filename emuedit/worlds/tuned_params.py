"""Keep what people tuned in a `params.yaml` that `emuedit init` wrote, when it writes the file again.

The options of the command determine the values of all keys with a `$name` in the template. All other keys are kept, with their
comments.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

_MARK = "Written by `emuedit init`"
_SECTION, _KEY = re.compile(r"^(\w+):", re.MULTILINE), re.compile(r"^  (\w+):", re.MULTILINE)
_SHOWN = 8


def keep(earlier: str, rendered: str, template: str) -> tuple[str, list[str]]:
    """(`rendered` with the kept keys of `earlier`, notes on what was kept and what was replaced). rendered: the filled template.

    `rendered` is returned without notes if `earlier` was not written by `emuedit init` or is not valid YAML.
    """
    old = sections(earlier)
    if not old:
        return rendered, []
    by_options = _keys_of_options(template)
    merged = _merge(earlier, rendered, by_options)
    new, result = yaml.safe_load(rendered), _parse(merged)
    if result is None:  # an alias, the anchor of which was replaced
        merged, result = rendered, new
    kept = [name for name, value in _keys(result) if value != _value(new, name)]
    notes = [f"kept from the earlier params.yaml: {', '.join(kept)}; remove a key there to get its default"] if kept else []
    before, after = dict(_flatten(old)), dict(_flatten(result))
    changes = [f"{key} {value} -> {after.get(key, 'removed')}" for key, value in before.items() if after.get(key) != value]
    if changes:
        more = f"; and {len(changes) - _SHOWN} more, see `git diff`" if len(changes) > _SHOWN else ""
        notes.append(f"replaced in the earlier params.yaml: {'; '.join(changes[:_SHOWN])}{more}")
    return merged, notes


def sections(earlier: str) -> dict[str, Any]:
    """The sections of a `params.yaml`; none if it was not written by `emuedit init` or is not valid YAML."""
    return (_parse(earlier) if _MARK in earlier else None) or {}


def _keys_of_options(template: str) -> set[tuple[str, str]]:
    """(section, key) of the keys in the template that depend on options."""
    texts = _split(template, _SECTION)
    return {(section, key) for section, text in texts.items() for key, block in _split(text, _KEY).items() if "$" in block}


def _merge(earlier: str, rendered: str, by_options: set[tuple[str, str]]) -> str:
    """The text of `earlier` with the keys of options, and keys that it does not have, from `rendered`."""
    old, new = _split(earlier, _SECTION), _split(rendered, _SECTION)
    parts = [new.pop("")]
    for section, text in old.items():
        if section == "":
            continue
        old_blocks, new_blocks = _split(text, _KEY), _split(new.pop(section, ""), _KEY)
        head = old_blocks.pop("")
        added = {key: f"{block.rstrip()}\n" for key, block in new_blocks.items() if key and key not in old_blocks}
        blocks = added | {
            key: new_blocks[key] if (section, key) in by_options and key in new_blocks else block
            for key, block in old_blocks.items()
        }
        parts += [head, *blocks.values()]
    return "".join([*parts, *new.values()])


def _split(text: str, pattern: re.Pattern[str]) -> dict[str, str]:
    """Name -> its lines; "" -> the lines before the first one."""
    starts = list(pattern.finditer(text))
    if not starts:
        return {"": text}
    ends = [match.start() for match in starts[1:]] + [len(text)]
    head = {"": text[: starts[0].start()]}
    return head | {match[1]: text[match.start() : end] for match, end in zip(starts, ends, strict=True)}


def _parse(text: str) -> dict[str, Any] | None:
    """The sections; None if the text is not valid YAML or has none."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return content if isinstance(content, dict) else None


def _keys(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in params.items():
        yield from ((f"{section}.{key}", value) for key, value in values.items()) if isinstance(values, Mapping) else ()


def _value(params: Mapping[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return params.get(section, {}).get(key)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(`section.key`, value) of all values that are not mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
