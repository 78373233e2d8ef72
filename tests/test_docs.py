"""The documents hold: links lead somewhere, commands exist, and nothing names the place where they were written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SUBCOMMANDS = frozenset(
    {"check", "deliver", "serve", "simulate", "resume", "report", "verify", "replay", "guard", "console"}
    | {"campaign", "bench", "doctor", "registers", "ledger", "export"}
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def console_commands(text: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def anchors(text: str) -> set[str]:
    """Heading anchors as GitHub and GitLab make them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_relative_to(ROOT), f"{name_of(page)}: {target} leaves the repository"
        assert linked.exists(), f"{name_of(page)}: {target} does not exist"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{name_of(page)}: no heading for {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_console_blocks_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in console_commands(page.read_text(encoding="utf-8")):
        program, *words = command.split()
        if program == "make":
            assert words
            assert words[0] in targets, f"{name_of(page)}: {command!r} is no target of the Makefile"
        elif Path(program).name == "spotwise":
            assert words, f"{name_of(page)}: {command!r} has no subcommand"
            assert words[0] in SUBCOMMANDS, f"{name_of(page)}: {command!r} is no subcommand"
        else:
            assert program in {"cd", "git", "python"}, f"{name_of(page)}: unknown program in {command!r}"


def test_the_readme_shows_how_to_start() -> None:
    commands = console_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert commands[:2] == ["make setup", "make demo"]


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(LINK.findall((folder / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in folder.glob("0*.md")} == listed


@pytest.mark.parametrize("name", ["requirements/base.txt", "requirements/dev.txt", "requirements/export.txt"])
def test_locks_are_hashed_and_name_no_place(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--index-url|--extra-index-url|--find-links| @ ", text)
    requirements = re.split(r"\n(?=[a-z])", text)
    assert len(requirements) > 20
    for requirement in requirements:
        assert "--hash=sha256:" in requirement, requirement.splitlines()[0]
