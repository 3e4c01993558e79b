"""The finder: from a key to its target by one closure, for the forms of rules that most plans have. Pure.

A rule in general splits a key into its parts and writes the target from them. Where the target writes the same parts
between the same separators, all that lies after the key's beginning stays as it is: two slices and a look for the
separator say the same. Twice as fast, and it is done once for every key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onetape.migrate.plans.pattern import Pattern, Template

Find = Callable[[bytes], bytes | None]


def finder(
    pattern: Pattern,
    head: bytes,
    default: Template,
    exact: Mapping[bytes, Template],
    prefixes: Sequence[tuple[bytes, Template]],
    part: int,
) -> Find | None:
    """Return what gives a key's target, None where the rule has another form.

    `exact` and `prefixes`: templates for some values of the pattern's part number `part`. A key given to the finder
    must begin with `head`.
    """
    find = _of_form(pattern, default, exact, prefixes, part)
    if find is None or pattern.prefix == head:
        return find
    prefix = pattern.prefix
    return lambda key: find(key) if key.startswith(prefix) else None


def _of_form(
    pattern: Pattern,
    default: Template,
    exact: Mapping[bytes, Template],
    prefixes: Sequence[tuple[bytes, Template]],
    part: int,
) -> Find | None:
    if pattern.suffix or len(pattern.separators) > 1:
        return None
    templates = (default, *exact.values(), *(template for _, template in prefixes))
    if not all(_keeps_the_rest(template, pattern) for template in templates):
        return None
    start, begin = len(pattern.prefix), default.prefix
    if not pattern.separators:
        return None if exact or prefixes else lambda key: begin + key[start:]
    separator = pattern.separators[0]
    if not exact and not prefixes:
        return lambda key: begin + key[start:] if key.find(separator, start) >= 0 else None
    if part != 1:
        return None
    begins = {value: template.prefix for value, template in exact.items()}
    shortened = tuple((value, len(value), template.prefix) for value, template in prefixes)
    width = len(separator)

    def find(key: bytes) -> bytes | None:
        at = key.rfind(separator, start)
        if at < 0:
            return None
        at += width
        value = key[at:]
        other = begins.get(value)
        if other is not None:
            return other + key[start:]
        for taken, size, other in shortened:
            if value.startswith(taken):
                return other + key[start:at] + value[size:]
        return begin + key[start:]

    return find


def _keeps_the_rest(template: Template, pattern: Pattern) -> bool:
    """Return whether a template writes its beginning and then the parts as the key had them, and nothing more."""
    empty = template.fill((b"",) * len(pattern.names))
    return template.one_to_one and empty == template.prefix + b"".join(pattern.separators)


__all__ = ["Find", "finder"]
