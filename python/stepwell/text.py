"""Text that comes from files and users, and what of it may be shown."""

from __future__ import annotations

import unicodedata

# marks that turn the direction of writing: a name that holds them reads as another one
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp", "Zs")  # control characters, surrogates, separators


def printable(text: str) -> str:
    """``text`` with "_" for each character that cannot be printed; the same object where there is none.

    Replaced are control characters, separators other than the space, surrogates and marks that turn the direction of writing.
    Emoji and the letters of all languages stay.
    """
    if text.isprintable():
        return text
    return "".join("_" if _is_replaced(character) else character for character in text)


def _is_replaced(character: str) -> bool:
    return character in BIDI or (character != " " and unicodedata.category(character) in UNPRINTABLE)
