"""The methods text of a run with its references, for people who read it in a browser."""

import re
import unicodedata
from dataclasses import dataclass

_ENTRY = re.compile(r"@\w+\{(\w+),\n(.*?)\n\}", re.DOTALL)
# A value ends where the next field begins: it may hold braces and lines of its own.
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*?)\},?(?=\n\s*\w+\s*=|\Z)", re.DOTALL | re.MULTILINE)
_CITATION = re.compile(r"\[@(\w+)\]")
# TeX's accents as the combining characters that they are.
_ACCENTS = {"'": "\u0301", "`": "\u0300", "~": "\u0303", '"': "\u0308", "^": "\u0302"}
_ACCENT = re.compile(r"\\(['`~\"^])\{?(\w)\}?")


@dataclass(frozen=True)
class Reference:
    """A work that the text cites; `doi` is "" where none is known."""

    key: str
    authors: tuple[str, ...]
    title: str
    where: str
    year: str
    doi: str

    @property
    def short(self) -> str:
        """As in a text: "Billot et al. 2023"."""
        families = [name.partition(",")[0] for name in self.authors]
        several = len(families) > 2 or families[-1] == "others"
        named = f"{families[0]} et al." if several else " and ".join(families)
        return f"{named} {self.year}"

    @property
    def listed(self) -> str:
        """As in a list: the first three authors."""
        names = ["and others" if name == "others" else name for name in self.authors]
        return "; ".join([*names[:3], "and others"] if len(names) > 3 else names)


def read_references(bibtex: str) -> dict[str, Reference]:
    """Key -> work, from entries as data/references.bib writes them; others are left out."""
    found = {}
    for key, body in _ENTRY.findall(bibtex):
        fields = {name.lower(): _plain(value) for name, value in _FIELD.findall(body)}
        found[key] = Reference(
            key=key,
            authors=tuple(fields.get("author", "unknown").split(" and ")),
            title=fields.get("title", ""),
            where=fields.get("journal") or fields.get("booktitle", ""),
            year=fields.get("year", ""),
            doi=fields.get("doi", ""),
        )
    return found


def methods_paragraphs(markdown: str) -> list[str]:
    """The paragraphs of CITATION.md, without its heading; citations stay as [@key]."""
    paragraphs = (" ".join(one.split()) for one in markdown.split("\n\n"))
    return [one for one in paragraphs if one and not one.startswith("#")]


def split_citations(
    paragraph: str, references: dict[str, Reference]
) -> list[tuple[str, Reference | None]]:
    """Pieces of text, each with the work that is cited after it; unknown keys stay in the text."""
    pieces: list[tuple[str, Reference | None]] = []
    text, end = "", 0
    for match in _CITATION.finditer(paragraph):
        text += paragraph[end : match.start()]
        end = match.end()
        if reference := references.get(match[1]):
            pieces.append((text, reference))
            text = ""
        else:
            text += match[0]
    return [*pieces, (text + paragraph[end:], None)]


def _plain(tex: str) -> str:
    """TeX without accents, braces and line breaks."""
    accented = _ACCENT.sub(lambda match: match[2] + _ACCENTS[match[1]], tex)
    bare = unicodedata.normalize("NFC", accented).replace("{", "").replace("}", "")
    return " ".join(bare.split()).replace("--", "-")
