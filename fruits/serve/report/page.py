"""A report as one HTML page that needs nothing else: no script, no request, its pictures and styles in it. Pure."""

import base64
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import fruits
from fruits.photos.ignore import meaning_of
from fruits.photos.quarantine import Reason
from fruits.run.decisions import described
from fruits.run.request import RunRequest
from fruits.serve.report import charts
from fruits.serve.report.content import Overview, RunReport
from fruits.text import inert, readable

OUTCOMES = {
    "published": ("good", "Published", "Readers see what this run made."),
    "nothing to do": (
        "calm",
        "Nothing to do",
        "The tables already held every photo in scope.",
    ),
    "waits for approval": ("busy", "Waits for approval", "All that this run would do waits for a person's approval."),
    "pinned": ("calm", "Pinned", "Readers stay on a publication, as a person decided: the run published nothing."),
    "dry run": ("calm", "Dry run", "The run planned, and stopped there as it was asked to. Nothing was changed."),
    "failed": ("bad", "Failed", "Nothing of this run is published. Readers are where they were."),
    "running": ("busy", "Running", "A task is under way, or was ended from outside. Nothing of this run is published."),
    "unfinished": ("busy", "Unfinished", "The next task has not started. Nothing of this run is published."),
}
_NONE = "\N{EN DASH}"
_SHOWN_KEYS = 3
_THOUSAND = 1_000
_REASONS = {reason.value: reason.description for reason in Reason}


def render(report: Overview | RunReport, made_at: datetime | None = None) -> str:
    """The page of a report; ``made_at`` (None: now) is when the report was read.

    The templates escape keys, labels, reasons and errors, so the page shows them as text.
    """
    name = "overview.html" if isinstance(report, Overview) else "run.html"
    return _page(name, report=report, made_at=made_at or datetime.now(UTC))


def render_message(title: str, message: str) -> str:
    """A page that says why there is no report."""
    return _page("message.html", title=title, message=message, made_at=None)


def content_security_policy() -> str:
    """The policy that a page is under, wherever it is opened: its own styles and pictures, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(_stylesheet().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _page(template: str, **values: Any) -> str:
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            policy=content_security_policy(),
            stylesheet=Markup(_stylesheet()),  # noqa: S704 -- our own file
            version=fruits.__version__,
        )
    )


@cache
def _stylesheet() -> str:
    return (files("fruits.serve.report") / "templates" / "report.css").read_text()


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=PackageLoader("fruits.serve.report"),
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else inert(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"charts": charts, "outcomes": OUTCOMES}
    filters: dict[str, Callable[..., object]] = {
        "count": lambda number: f"{number:,}",
        "percent": _percent,
        "figure": _figure,
        "seconds": _seconds,
        "size": _size,
        "moment": lambda moment: f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "jpeg": lambda data: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
        "explained": _explained,
        "meaning": lambda rule: _with_code(meaning_of(rule)),
        "readable": readable,
        "shortened": charts.shortened,
        "scope": _scope,
        "described": described,
    }
    environment.filters |= filters
    return environment


def _explained(reason: str) -> Markup:
    """A reason's description; text between backticks becomes code."""
    return _with_code(_REASONS.get(reason, "A reason that this version of the software does not know."))


def _with_code(text: str) -> Markup:
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 -- escaped before


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{share:.1%}"


def _figure(number: float | None) -> str:
    """A gate's value or threshold."""
    if number is None:
        return _NONE
    return f"{number:,.0f}" if number.is_integer() else f"{number:.4g}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if round(seconds, 1) < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < _THOUSAND:
            return f"{size:,.0f} {unit}" if size == int(size) else f"{size:,.1f} {unit}"
        size /= _THOUSAND
    return f"{size:,.1f} GB"


def _scope(request: RunRequest) -> dict[str, str]:
    """The run's request in words, without the defaults."""
    keys, interval = request.keys, request.interval
    rows = {
        "Mode": request.mode,
        "Prefix": request.prefix or "all of the bucket",
        "Keys": f"{len(keys):,} named: {', '.join(keys[:_SHOWN_KEYS])}{' …' * (len(keys) > _SHOWN_KEYS)}"
        if keys
        else "",
        "Interval": f"{interval[0].isoformat()} to {interval[1].isoformat()}" if interval else "",
        "Backbone": ", weights ".join(filter(None, (request.backbone, request.weights))),
        "Precision": request.precision or "",
        "PCA components": str(request.n_components),
        "Refit": request.refit,
        "Limit": f"{request.limit:,} photos" if request.limit else "",
        "Retry quarantined": "yes" if request.retry_quarantined else "",
        "Allow deletions": "yes" if request.allow_deletes is True else request.allow_deletes or "",
        "Dry run": "yes" if request.dry_run else "",
    }
    return {name: value for name, value in rows.items() if value}
