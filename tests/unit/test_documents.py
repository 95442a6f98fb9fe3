"""What README, ARCHITECTURE and CONTRIBUTING name is there: files and links; and a glossary that stays short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
NAMED = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|txt|yaml)|(?:[\w-]+/)+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
# What a person or a model brings.
OF_USERS = {"./config.toml", "config.toml", "config.json", "tokenizer.json", "additional_chat_templates/"}
TREES = ("", "hydra", "hydra/actors", "hydra/store", "hydra/kernels", "hydra/protocol", "tests", "scenarios")


def missing(page: str) -> set[str]:
    """Names in backticks that are no file: from the root, from a room, or the last part of some path."""
    files = {path.relative_to(ROOT).as_posix() for path in tracked()}
    folders = {f"{parent}/" for file in files for parent in map(str, Path(file).parents)}
    names = set(NAMED.findall(page)) - OF_USERS
    there = files | folders
    return {
        name
        for name in names
        if not any(f"{tree}/{name}".lstrip("/") in there for tree in TREES)
        and not any(file.endswith(f"/{name}") for file in files)
    }


def tracked() -> list[Path]:
    trees = ("hydra", "tests", "scenarios", "install")
    return [*(path for tree in trees for path in (ROOT / tree).rglob("*.*")), *ROOT.glob("*.*"), *ROOT.glob(".*.yaml")]


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_are_there(name):
    assert not missing((ROOT / name).read_text()), name


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    assert not [target for target in LINK.findall((ROOT / name).read_text()) if not (ROOT / target).exists()]


def test_the_rule_sees_what_it_is_for():
    assert missing("see `actors/core/cell.py` and `no/such/`") == {"actors/core/cell.py", "no/such/"}
    assert not missing("see `actors/core/host.py`, `host.py` and `text/`")


def test_the_glossary_is_short_and_in_order():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    glossary = page[page.index("## Glossary") :]
    words = [line.split("|")[1].strip() for line in glossary.splitlines() if line.startswith("| ")][1:]
    assert 30 < len(words) <= 60 and words == sorted(words, key=lambda word: word.lower().replace(" ", ""))
