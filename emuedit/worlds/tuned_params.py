"""Keep what people tuned in a `params.yaml` that `emuedit init` wrote, when it writes the file again.

The options of the command, and the captions and the benchmark that they name, determine the values of the template's `$` names. A
comment at the end of the file records those that are computed. The next run replaces a value if it is an option or if another one
is computed now. All other values are kept, with their comments.
"""

import json
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

_MARK = "Written by `emuedit init`"
_SECTION, _KEY = re.compile(r"^(\w+):", re.MULTILINE), re.compile(r"^  (\w+):", re.MULTILINE)
_NAME_IN_COMMENT, _ANCHOR_OR_TAG = re.compile(r"#.*\$"), re.compile(r"(?:[&!]\S*\s+)*")
_COMMENT_AFTER = re.compile(r"([^#\n]*?)( +)(?=# )")
_RECORD_HEAD = "# Computed values, for the next run of `emuedit init`: it keeps those that differ above. Do not edit these lines."
_RECORD_WIDTH = 118
_OPTION = "--"
"""Prefix of an option's name in the record."""
_Path = tuple[str | int, ...]


def keep(
    earlier: str, rendered: str, template: str, options: Collection[str], limited: Mapping[str, Any] | None = None
) -> tuple[str, list[str]]:
    """(`rendered` with the kept values of `earlier` and the new record, notes on what was kept, replaced and added).

    rendered: the filled template. options: `$` names in the template whose values are options; the others are computed.
    limited: `$` names of options whose value may be above the rendered one -> that value, for the record.
    Nothing is kept if `earlier` was not written by `emuedit init` or is not valid YAML, and no `$` value if it has no record.
    """
    old, new = sections(earlier), yaml.safe_load(rendered)
    names = _names(template)
    values = {name: _get(new, path) for path, name in names.items()}
    limited = limited or {}
    recorded = {name: value for name, value in values.items() if name not in options or name in limited}
    record = _format_record(recorded | {_OPTION + name: value for name, value in limited.items()})
    if not old:
        return rendered + record, []
    body, written = _split_record(earlier)
    is_new = {name for name, value in values.items() if name in options or name not in written or written[name] != value}
    edited = _replace_values(body, rendered, [path for path, name in names.items() if name in is_new])
    merged = _merge(edited, rendered, template)
    result = _parse(merged)
    if result is None:  # an alias, the anchor of which was replaced
        merged, result = rendered, new
    kept = [name for name, value in _keys(result) if value != _value(new, name)]
    notes = [f"kept from the earlier params.yaml: {', '.join(kept)}; remove a key there to get its default"] if kept else []
    before, after = dict(_flatten(old)), dict(_flatten(result))
    changes = [f"{key} {value} -> {after.get(key, 'removed')}" for key, value in before.items() if after.get(key) != value]
    added = [f"{key} {value}" for key, value in after.items() if key not in before]
    notes += [f"replaced in the earlier params.yaml: {'; '.join(changes)}"] if changes else []
    notes += [f"added to the earlier params.yaml: {'; '.join(added)}"] if added else []
    return merged.rstrip("\n") + "\n" + record, notes


def sections(earlier: str) -> dict[str, Any]:
    """The sections of a `params.yaml`; none if it was not written by `emuedit init` or is not valid YAML."""
    return (_parse(earlier) if _MARK in earlier else None) or {}


def read(earlier: str, template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`$` name in the template -> its value in `earlier`, `$` name -> value that the earlier run computed).

    The first one has the value of a limited option before the limit, unless it was changed by hand. Both are empty if `earlier`
    was not written by `emuedit init` or is not valid YAML, the second one also without a record.
    """
    if not sections(earlier):
        return {}, {}
    body, computed = _split_record(earlier)
    names, content = _names(template), yaml.safe_load(body)
    nodes = dict(_walk(yaml.compose(body)))
    values = {name: _get(content, path) for path, name in names.items() if path in nodes}
    for name in values.keys() & computed.keys():
        if _OPTION + name in computed and values[name] == computed[name]:
            values[name] = computed.pop(_OPTION + name)
            del computed[name]
    return values, computed


def _names(template: str) -> dict[_Path, str]:
    """Path -> `$` name of the values of the template that are filled in."""
    return {path: str(node.value)[1:] for path, node in _walk(yaml.compose(template)) if str(node.value).startswith("$")}


def _format_record(values: Mapping[str, Any]) -> str:
    """The comment: JSON, which a text replacement of a value above does not match."""
    text = json.dumps(values, ensure_ascii=False, sort_keys=True)
    lines = textwrap.wrap(text, _RECORD_WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(["", _RECORD_HEAD, *(f"# {line}" for line in lines), ""])


def _split_record(text: str) -> tuple[str, dict[str, Any]]:
    """(`text` without the record, `$` name -> value that the earlier run computed; none if the record is missing or damaged)."""
    body, head, after = text.partition(_RECORD_HEAD)
    if not head:
        return text, {}
    lines = after.removeprefix("\n").splitlines(keepends=True)
    n_lines = next((number for number, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    values = _parse("".join(line.removeprefix("# ") for line in lines[:n_lines])) or {}  # JSON is YAML
    return body.rstrip("\n") + "\n" + "".join(lines[n_lines:]), values


def _replace_values(text: str, rendered: str, paths: Collection[_Path]) -> str:
    """`text` with the values of `rendered` at these paths, if it has them and they differ; everything else stays as it is.

    So does an alias, since its text is that of the anchor, which may be at a tuned key.
    """
    old, new = (dict(_walk(yaml.compose(content))) for content in (text, rendered))
    old_values, new_values = yaml.safe_load(text), yaml.safe_load(rendered)
    written_at = {id(node): path for path, node in reversed(old.items())}  # the first path of a value with aliases
    edits: dict[tuple[int, int], str] = {}
    for path in paths:
        node, source = old.get(path), new.get(path)
        if node is None or source is None or written_at[id(node)] != path:
            continue
        if _get(old_values, path) != _get(new_values, path):
            start, end = _span(source, rendered)
            edits[_span(node, text)] = rendered[start:end]
    for (start, end), value in sorted(edits.items(), reverse=True):
        is_below_key = "\n" in text[:start][len(text[:start].rstrip()) :] and text[:start].rstrip().endswith(":")
        is_empty = start == end and text[:start].endswith(":")
        head = text[:start].rstrip() + " " if is_below_key or is_empty else text[:start]
        rest, growth = text[end:], len(value) - (end - start)
        if comment := _COMMENT_AFTER.match(rest):
            rest = comment[1] + " " * max(1, len(comment[2]) - growth) + rest[comment.end() :]
        text = head + value + rest
    return text


def _span(node: yaml.Node, text: str) -> tuple[int, int]:
    """Start and end of a value in the text, without its anchor and tag."""
    anchored = _ANCHOR_OR_TAG.match(text, node.start_mark.index)
    start = anchored.end() if anchored else node.start_mark.index
    last = node
    while isinstance(last, yaml.CollectionNode) and not last.flow_style and last.value:  # a block ends with its last value
        last = last.value[-1][1] if isinstance(last, yaml.MappingNode) else last.value[-1]
    return start, start + len(text[start : last.end_mark.index].rstrip())


def _walk(node: yaml.Node | None, path: _Path = ()) -> Iterator[tuple[_Path, yaml.Node]]:
    """(path, node) of all values, in the order of the text; a value with aliases also at each of them."""
    if node is None:
        return
    yield path, node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _walk(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*path, index))


def _get(content: Any, path: _Path) -> Any:
    """The value at a path that exists."""
    for part in path:
        content = content[part]
    return content


def _merge(earlier: str, rendered: str, template: str) -> str:
    """The text of `earlier` with the keys that it does not have, from `rendered`, and with comments that have computed values."""
    content, new_content = _parse(earlier) or {}, yaml.safe_load(rendered)
    old, new, texts = (_split(text, _SECTION) for text in (earlier, rendered, template))
    parts = [new.pop("")]
    for section, text in old.items():
        if section == "":
            continue
        old_blocks, new_blocks = _split(text, _KEY), _split(new.pop(section, ""), _KEY)
        has_computed_comment = {
            key
            for key, block in _split(texts.get(section, ""), _KEY).items()
            if key in old_blocks and key in new_blocks and _NAME_IN_COMMENT.search(block)
        }
        head = old_blocks.pop("")
        added = {key: f"{block.rstrip()}\n" for key, block in new_blocks.items() if key and key not in old_blocks}
        blocks = added | {
            key: new_blocks[key]
            if key in has_computed_comment and _value(content, f"{section}.{key}") == _value(new_content, f"{section}.{key}")
            else block
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
    values = params.get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(`section.key`, value) of all values that are not mappings, also of those in lists."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{name}[{index}]")
    else:
        yield name, value
