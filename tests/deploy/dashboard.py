"""The Grafana dashboard in deploy/grafana: what is drawn, in a few lines.

``python -m tests.deploy.dashboard`` writes the file that Grafana imports.
"""

import json
from typing import Any

from tests.deploy.units import DEPLOY

DASHBOARD = DEPLOY / "grafana" / "asgictl.json"
WIDTH = 24
HEIGHT = 8

SELECTOR = '{job=~"$job", instance=~"$instance"}'


def rate(metric: str, by: str = "", more: str = "") -> str:
    """Return a sum of rates; ``more`` narrows what is looked at."""
    selector = SELECTOR[:-1] + (f", {more}" if more else "") + "}"
    labels = f" by ({by})" if by else ""
    return f"sum{labels} (rate({metric}{selector}[$__rate_interval]))"


def panel(
    title: str, unit: str, about: str, *queries: tuple[str, str], kind: str = "timeseries"
) -> dict[str, Any]:
    """Return a panel; each query is an expression and what its lines are called."""
    return {
        "title": title,
        "type": kind,
        "description": about,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"expr": expression, "legendFormat": legend, "refId": chr(ord("A") + number)}
            for number, (expression, legend) in enumerate(queries)
        ],
    }


def arranged(rows: list[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Return the panels with their places: each row of them shares the width."""
    found: list[dict[str, Any]] = []
    y = 0
    for title, panels in rows:
        place = {"h": 1, "w": WIDTH, "x": 0, "y": y}
        found.append({"title": title, "type": "row", "collapsed": False, "gridPos": place})
        width = WIDTH // len(panels)
        for number, item in enumerate(panels):
            place = {"h": HEIGHT, "w": width, "x": number * width, "y": y + 1}
            found.append(item | {"gridPos": place})
        y += HEIGHT + 1
    for number, item in enumerate(found, 1):
        item["id"] = number
    return found


def variable(name: str, query: str) -> dict[str, Any]:
    """Return a choice above the dashboard."""
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": query,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def gauge(metric: str) -> str:
    """Return a metric as it is."""
    return metric + SELECTOR


def quantile(share: float) -> str:
    """Return in which time a share of the requests is answered."""
    buckets = rate("asgictl_http_request_duration_seconds_bucket", "le")
    return f"histogram_quantile({share}, {buckets})"


def dashboard() -> dict[str, Any]:
    """Return everything, as Grafana keeps it."""
    errors = rate("asgictl_http_requests_total", more='status="5xx"')
    service = [
        panel(
            "Ready",
            "short",
            "Workers that are ready, and how many there shall be.",
            (gauge("asgictl_workers_ready"), "{{instance}} ready"),
            (gauge("asgictl_workers_desired"), "{{instance}} desired"),
        ),
        panel(
            "Requests",
            "reqps",
            "By class of status.",
            (rate("asgictl_http_requests_total", "status"), "{{status}}"),
        ),
        panel(
            "Errors",
            "percentunit",
            "The share of answers with 5xx.",
            (f"{errors} / {rate('asgictl_http_requests_total')}", "5xx"),
        ),
        panel(
            "Duration",
            "s",
            "From the head of a request to the end of its response.",
            (quantile(0.5), "half"),
            (quantile(0.95), "95 %"),
            (quantile(0.99), "99 %"),
        ),
    ]
    load = [
        panel(
            "Busy",
            "percentunit",
            "The share of time in which event loops work; what to scale by.",
            (gauge("asgictl_busy_ratio"), "{{instance}}"),
        ),
        panel(
            "In progress",
            "short",
            "Requests and WebSockets that the application works on, and open connections.",
            (f"sum({gauge('asgictl_requests_in_progress')})", "in progress"),
            (f"sum({gauge('asgictl_websockets_open')})", "WebSockets"),
            (f"sum({gauge('asgictl_connections_open')})", "connections"),
        ),
        panel(
            "Queues",
            "short",
            "Connections that wait in the kernel, and those that were dropped per second.",
            (gauge("asgictl_listen_queue_connections"), "{{instance}} {{address}}"),
            (rate("asgictl_listen_queue_dropped_total", "address"), "dropped {{address}}"),
        ),
        panel(
            "Bytes",
            "Bps",
            "Inside of TLS.",
            (rate("asgictl_received_bytes_total"), "received"),
            (rate("asgictl_sent_bytes_total"), "sent"),
        ),
    ]
    workers = [
        panel(
            "Event loop lag",
            "s",
            "By how much event loops are late: blocking code, or a busy machine.",
            (gauge("asgictl_worker_loop_lag_seconds"), "{{instance}} {{slot}}"),
        ),
        panel(
            "Memory",
            "bytes",
            "Proportional: what is shared is divided by how many share it.",
            (gauge("asgictl_worker_memory_pss_bytes"), "{{instance}} {{slot}}"),
            (gauge("asgictl_supervisor_memory_pss_bytes"), "{{instance}} supervisor"),
        ),
        panel(
            "Heartbeat age",
            "s",
            "More than two seconds means that a worker is late.",
            (gauge("asgictl_worker_heartbeat_age_seconds"), "{{instance}} {{slot}}"),
        ),
        panel(
            "Requests by worker",
            "reqps",
            "How evenly the work is spread.",
            (rate("asgictl_worker_requests_total", "instance, slot"), "{{instance}} {{slot}}"),
        ),
    ]
    exits = f"sum by (cause) (increase(asgictl_worker_exits_total{SELECTOR}[$__rate_interval]))"
    events = [
        panel(
            "Ends of workers", "short", "By cause; see the page of metrics.", (exits, "{{cause}}")
        ),
        panel(
            "Reloads",
            "short",
            "Committed and refused, since the supervisor was started.",
            (gauge("asgictl_reloads_total"), "{{instance}} {{result}}"),
        ),
        panel(
            "Generation",
            "short",
            "The code that serves; equal on all machines when a deploy is complete.",
            (gauge("asgictl_generation"), "{{instance}}"),
        ),
        panel(
            "Exceptions",
            "short",
            "Of the application, per second.",
            (rate("asgictl_exceptions_total"), "exceptions"),
        ),
    ]
    rows = [("Service", service), ("Load", load), ("Workers", workers), ("Events", events)]
    return {
        "title": "asgictl",
        "uid": "asgictl",
        "tags": ["asgictl"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                variable("job", "label_values(asgictl_info, job)"),
                variable("instance", 'label_values(asgictl_info{job=~"$job"}, instance)'),
            ]
        },
        "panels": arranged(rows),
    }


def text() -> str:
    """Return the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text(), encoding="utf-8")
