"""docs/rules.md, made from the registries: `python -m controller.plan.rules_page` writes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from controller.machine.deliverable import SITE_RULES
from controller.plan.rules import MALFORMED_RULES, PLAN_RULES, ROOM_RULES, UNSUPPORTED_RULES, Rule

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"


def rules_page() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Rules of `spotwise check`"
    yield ""
    yield "Made from the registries in `controller/plan/rules.py` and `controller/machine/deliverable.py`;"
    yield "do not edit, run `python -m controller.plan.rules_page`."
    yield ""
    yield "A finding names its rule, where in the plan it applies, what was wanted and what was got. Severity `refuse`"
    yield "stops the plan, `warn` needs a reader, `note` is for information."
    yield from _section(
        "The file cannot be used",
        "Exit status 2, outcome `unreadable`. Nothing of the file is delivered, not even its sound parts.",
        MALFORMED_RULES,
    )
    yield from _section(
        "The plan asks for what Spotwise does not deliver",
        "Exit status 3, outcome `refused`, on every site.",
        UNSUPPORTED_RULES,
    )
    yield from _section("The plan as a whole", "Exit status 3 where the severity is `refuse`.", PLAN_RULES)
    yield from _section("The plan on this machine", "Exit status 3 where the severity is `refuse`.", SITE_RULES)
    yield from _section(
        "The room today", "Nothing about the plan: exit status and outcome stay what they are without it.", ROOM_RULES
    )


def _section(title: str, what: str, rules: Sequence[Rule]) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    yield what
    yield ""
    yield "| rule | severity | meaning | what to do |"
    yield "| --- | --- | --- | --- |"
    for rule in rules:
        meaning, action = (text.replace("|", "\\|") for text in (rule.meaning, rule.action))
        yield f"| `{rule.name}` | {rule.severity} | {meaning} | {action} |"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(rules_page(), encoding="utf-8")
