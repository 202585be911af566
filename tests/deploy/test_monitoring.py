"""Alert rules and dashboard: tried by Prometheus' own tool, with names that exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.dashboard import DASHBOARD, dashboard, text
from tests.deploy.test_proxies import program
from tests.deploy.units import DEPLOY

from asgictl.operate.metrics import METRICS

RULES = DEPLOY / "prometheus" / "asgictl.rules.yaml"
TESTS = DEPLOY / "prometheus" / "asgictl.test.yaml"

LABELS = {metric.full_name: set(metric.labels) for metric in METRICS}
LABELS |= {
    f"{metric.full_name}_{part}": {*metric.labels, "le"}
    for metric in METRICS
    if metric.kind == "histogram"
    for part in ("bucket", "count", "sum")
}
ADDED = {"job", "instance", "le"}
"""Labels that Prometheus adds."""


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def assert_exists(expression: str, labels: set[str]) -> None:
    names = set(re.findall(r"asgictl_\w+", expression))
    assert names
    assert names <= set(LABELS), expression
    known = set.union(ADDED, *(LABELS[name] for name in names))
    used = set(re.findall(r"(\w+)=~?\"", expression))
    for by in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        used |= set(by.split(", "))
    assert used | labels <= known, expression


@pytest.mark.parametrize(("words", "file"), [("check rules", RULES), ("test rules", TESTS)])
def test_prometheus_accepts_the_rules_and_each_does_what_it_shall(words: str, file: Path) -> None:
    try:
        promtool = program("promtool")
    except pytest.skip.Exception:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    done = subprocess.run(
        [promtool, *words.split(), str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_rules_use_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    assert_exists(rule["expr"], set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))))


def test_each_alert_is_seen_to_fire_and_to_be_quiet() -> None:
    quiet, fires = (
        {case["alertname"] for case in test["alert_rule_test"] if wanted(case)}
        for test, wanted in zip(
            yaml.safe_load(TESTS.read_text())["tests"],
            (lambda case: "exp_alerts" not in case, lambda case: "exp_alerts" in case),
            strict=True,
        )
    )
    assert quiet == fires == {rule["alert"] for rule in rules()}


def test_the_dashboard_is_what_its_source_makes() -> None:
    written = DASHBOARD.read_text(encoding="utf-8")
    assert written == text(), "run `python -m tests.deploy.dashboard`"


def test_the_dashboard_uses_metrics_and_labels_that_exist() -> None:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert len(panels) == 16
    for panel in panels:
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert_exists(target["expr"], labels)


def test_the_panels_fill_the_page_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
