"""The methods text and its references, out of Markdown and BibTeX."""

from importlib.resources import files

import pytest

from bids_synthseg.bids.references import methods_paragraphs, read_references, split_citations

SHIPPED = (files("bids_synthseg") / "data" / "references.bib").read_text(encoding="utf-8")


def test_every_shipped_work_is_read_in_full():
    works = read_references(SHIPPED)
    assert SHIPPED.count("\n@") + 1 == len(works)
    assert all(work.title and work.where and work.year and work.doi for work in works.values())
    fidon = works["fidon2021"]
    # The title goes on after a line that ends with a closing brace.
    assert fidon.title.endswith("application to fetal brain 3D MRI parcellation")
    assert "Guffens, Frédéric" in fidon.authors and "Ourselin, Sébastien" in fidon.authors
    words = " ".join(" ".join((*work.authors, work.title, work.where)) for work in works.values())
    assert not set(words) & set("{}\\")


@pytest.mark.parametrize(
    ("authors", "short", "listed"),
    [
        ("Doe, Jo", "Doe 2020", "Doe, Jo"),
        ("Doe, Jo and Roe, Al", "Doe and Roe 2020", "Doe, Jo; Roe, Al"),
        ("Doe, Jo and others", "Doe et al. 2020", "Doe, Jo; and others"),
        ("A, A and B, B and C, C and D, D", "A et al. 2020", "A, A; B, B; C, C; and others"),
    ],
)
def test_authors(authors, short, listed):
    [work] = read_references(
        f"@misc{{k,\n  author = {{{authors}}},\n  year = {{2020}},\n}}"
    ).values()
    assert (work.short, work.listed) == (short, listed)


def test_paragraphs_are_joined_lines_without_the_heading():
    assert methods_paragraphs("# Methods\n\nOne\nline.\n\nAnother.\n") == ["One line.", "Another."]


def test_citations_split_the_text_and_unknown_ones_stay():
    works = read_references(SHIPPED)
    pieces = split_citations("By [@billot2023], not [@nobody], (N4 [@tustison2010]).", works)
    assert [(text, work and work.key) for text, work in pieces] == [
        ("By ", "billot2023"),
        (", not [@nobody], (N4 ", "tustison2010"),
        (").", None),
    ]
