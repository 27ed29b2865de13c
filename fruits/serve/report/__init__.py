"""The run report: what readers see now, or how one run went, as one self-contained HTML page.

``read_overview(settings)`` and ``read_run(settings, key)`` read from lake and bucket and return plain values;
``render(report)`` makes the page of either, without any I/O; ``run_key`` makes the key of Airflow's run id.
Errors are ``FruitsError``; ``UnknownRunError`` is one of them.
"""

from fruits.serve.report.content import Overview, RunReport
from fruits.serve.report.page import content_security_policy, render, render_message
from fruits.serve.report.reading import UnknownRunError, read_overview, read_run

__all__ = [
    "Overview",
    "RunReport",
    "UnknownRunError",
    "content_security_policy",
    "read_overview",
    "read_run",
    "render",
    "render_message",
]
