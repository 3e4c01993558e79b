"""The pattern: a key's shape with named parts, and the template that writes another key from them."""

from __future__ import annotations

import re

#: A brace that is meant (written twice, for the hash tags of a cluster), or a part.
_TOKEN = re.compile(r"\{\{|\}\}|\{([a-z][a-z0-9_]*)\}")


class PatternError(ValueError):
    """A pattern or template that cannot be used; says why in one line."""


class Pattern:
    """A shape such as `indicators:{symbol}:{name}`: literals and named parts, compiled to slices.

    The first part is greedy, the others cannot contain the literal before them. Any part may be empty.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        literals, self.names = _parse(text)
        if not self.names:
            raise PatternError(f"{text!r} has no {{part}}: a pattern needs one")
        if len(set(self.names)) != len(self.names):
            raise PatternError(f"{text!r} has a part twice")
        if b"" in literals[1:-1]:
            raise PatternError(f"{text!r} has two parts with nothing between them")
        self.prefix, self.suffix = literals[0], literals[-1]
        self.separators = tuple(literals[1:-1])
        self._start, self._end = len(self.prefix), len(self.suffix)
        self._length_min = self._start + self._end

    def split(self, key: bytes) -> tuple[bytes, ...] | None:
        """Return the parts of a key in the order of the pattern, or None if the key has another shape."""
        if not key.startswith(self.prefix):
            return None
        if self._end:
            if not key.endswith(self.suffix) or len(key) < self._length_min:
                return None
            rest = key[self._start : -self._end]
        else:
            rest = key[self._start :]
        separators = self.separators
        if not separators:
            return (rest,)
        if len(separators) == 1:
            head, found, tail = rest.rpartition(separators[0])
            return (head, tail) if found else None
        values: list[bytes] = []
        for separator in reversed(separators):
            rest, found, tail = rest.rpartition(separator)
            if not found:
                return None
            values.append(tail)
        return (rest, *reversed(values))


class Template:
    """A target such as `ind:ta:{symbol}:{name}` for the parts of one pattern.

    `dropped`: parts of the pattern that it does not write. `one_to_one`: proved by its form that different
    keys get different targets, because it writes the same parts with the same separators.
    """

    def __init__(self, text: str, pattern: Pattern) -> None:
        self.text = text
        literals, names = _parse(text)
        for name in names:
            if name not in pattern.names:
                raise PatternError(f"target {text!r} uses {{{name}}}, which is not in the pattern")
        self.prefix = literals[0]
        self.dropped = tuple(name for name in pattern.names if name not in names)
        self.one_to_one = names == pattern.names and tuple(literals[1:-1]) == pattern.separators
        self._order = tuple(pattern.names.index(name) for name in names)
        self._in_order = self._order == tuple(range(len(pattern.names)))
        self._format = b"%b".join(literal.replace(b"%", b"%%") for literal in literals)

    def fill(self, values: tuple[bytes, ...]) -> bytes:
        """Return the key that the parts give."""
        if self._in_order:
            return self._format % values
        return self._format % tuple([values[i] for i in self._order])

    def sample(self) -> bytes:
        """Return a key as the template could write it."""
        return self._format % tuple([b"\x00sample"] * len(self._order))


def _parse(text: str) -> tuple[list[bytes], tuple[str, ...]]:
    """Return the literals around the parts (one more than there are parts) and the names of the parts.

    `{{` and `}}` stand for one brace each: `ind:{{{symbol}}}:{name}` is `ind:{`, symbol, `}:`, name.
    """
    literals, names, at = [""], [], 0
    for token in _TOKEN.finditer(text):
        literals[-1] += _plain(text, text[at : token.start()])
        at = token.end()
        if token[1] is None:
            literals[-1] += token[0][0]
        else:
            names.append(token[1])
            literals.append("")
    literals[-1] += _plain(text, text[at:])
    return [literal.encode() for literal in literals], tuple(names)


def _plain(text: str, literal: str) -> str:
    if "{" in literal or "}" in literal:
        raise PatternError(f"{text!r}: a part is written {{name}}, in small letters; a brace is written twice")
    return literal


def glob_pattern(glob: bytes) -> re.Pattern[bytes]:
    r"""Return a Redis glob (`*`, `?`, `[a-z]`, `[^x]`, `\x`) as a regular expression for fullmatch()."""
    out, at = b"", 0
    while at < len(glob):
        char = glob[at : at + 1]
        end = glob.find(b"]", at + 1)
        if char == b"[" and end > at + 1:
            inner = glob[at + 1 : end]
            negated = inner[:1] == b"^"
            inner = re.sub(rb"([\\\[\]^&|~])", rb"\\\1", inner[1:] if negated else inner)
            out += b"[" + (b"^" if negated else b"") + inner + b"]"
            at = end
        elif char == b"\\" and at + 1 < len(glob):
            at += 1
            out += re.escape(glob[at : at + 1])
        else:
            out += {b"*": b".*", b"?": b"."}.get(char) or re.escape(char)
        at += 1
    return re.compile(out, re.DOTALL)
