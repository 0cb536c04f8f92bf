"""The rules of `ops/alerts.yml`: well formed, about metrics and labels that exist, with a page that says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from engine.core.finding_records import Cause
from gateway.metrics import DESCRIPTIONS

ROOT = Path(__file__).parents[2]
GROUPS: list[Any] = YAML(typ="safe").load((ROOT / "ops" / "alerts.yml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
WORDS = {"max", "sum", "by", "and", "time", "increase", "absent", "metric", "period", "cause"}
DURATION = re.compile(r"[0-9]+[smhd]")
by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def test_each_rule_has_a_name_of_its_own_and_each_group_too() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 10
    assert len({group["name"] for group in GROUPS}) == len(GROUPS)


@by_rule
def test_a_rule_is_whole(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert DURATION.fullmatch(rule.get("for", "1m"))
    expression = rule["expr"]
    assert all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]"))


@by_rule
def test_a_rule_is_about_metrics_and_causes_that_exist(rule: dict[str, Any]) -> None:
    expression = re.sub(r"\[[^]]*\]", "", rule["expr"])
    causes = re.findall(r'cause!?="([a-z_]+)"', expression)
    assert set(causes) <= set(Cause.__args__)
    bare = re.sub(r"\{[^}]*\}", "", expression)
    names = set(re.findall(r"[a-z_]{3,}", bare)) - WORDS
    assert names
    assert names <= set(DESCRIPTIONS)


@by_rule
def test_a_rules_page_has_the_heading_that_it_names(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", one).strip().lower().replace(" ", "-") for one in headings}
    assert not anchor or anchor in anchors
