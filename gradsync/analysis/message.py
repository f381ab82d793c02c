"""Text that is put into a language late: an English template and the values of its named placeholders.

Whatever a reader sees is a ``Text``: a ``Message`` (made by ``msg``), a list of them, or a plain string, which is
never translated: a name, a figure, user text. A ``Language`` turns it into one line of printable characters. The
English template is the key of the catalogue, so English needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Message:
    """``values`` are strings, whole numbers or Texts themselves; figures get their digits before they come here."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return ENGLISH(self)


@dataclass(frozen=True)
class Listing:
    """Parts with ``between`` and, before the last one, ``final`` between them; both are catalogue entries."""

    parts: tuple[Text, ...]
    between: str
    final: str

    def __str__(self) -> str:
        return ENGLISH(self)


Text: TypeAlias = "str | Message | Listing"


@dataclass(frozen=True)
class Language:
    """Renders any Text. What the catalogue lacks stays English, and a test fails."""

    code: str
    catalogue: Mapping[str, str]

    def __call__(self, text: object) -> str:
        if isinstance(text, Message):
            template = self.catalogue.get(text.template, text.template)
            return template.format(**{name: self(value) for name, value in text.values.items()})
        if isinstance(text, Listing):
            parts = [self(part) for part in text.parts]
            between, final = (self.catalogue.get(entry, entry) for entry in (text.between, text.final))
            return between.join(parts[:-1]) + final + parts[-1] if len(parts) > 1 else "".join(parts)
        return printable(text)


ENGLISH = Language("en", {})


def msg(template: str, /, **values: Any) -> Message:
    """The one way to write a text for readers: ``template`` must be a literal, so that a test can find it."""
    return Message(template, values)


def term(word: str) -> Message:
    """A word of a closed vocabulary, such as a verdict or the name of a check, where a text shows it."""
    return Message(word)


def joined(parts: Iterable[Text]) -> Text:
    """``a, b and c``"""
    known = tuple(parts)
    return Listing(known, ", ", " and ") if known else msg("none")


def enumerated(parts: Iterable[Text]) -> Text:
    """``a, b, c``"""
    return Listing(tuple(parts), ", ", ", ")


def reasons(parts: Iterable[Text]) -> Text:
    """``a, and b, and c``: of sentences, where ``enumerated`` is of words."""
    return Listing(tuple(parts), ", and ", ", and ")


def clauses(parts: Iterable[Text]) -> Text:
    """``a; b; c``"""
    return Listing(tuple(parts), "; ", "; ")


def printable(text: object) -> str:
    r"""One line of visible characters: control, format and newline characters become ``\xNN`` escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in str(text)
    )
