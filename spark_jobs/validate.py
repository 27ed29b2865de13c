"""Check what a run wrote, before anybody reads it.

Measures the snapshots that featurize and pca wrote, scores the linear probe when there is a new PCA version, and
evaluates the gates. Writes the run's validate.json, with the snapshots that it measured, whatever the verdict; exit
code 3 when a required gate fails.
"""

import logging
import sys

from fruits.analysis.gates import evaluate, failed
from fruits.errors import GateError
from fruits.lake.schemas import DATA_TABLES
from fruits.run.documents import Probe, Validated
from fruits.spark.job import Job, run_job
from fruits.spark.measurements import Measured, measure

log = logging.getLogger("fruits")


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("validate", __doc__ or "", validate, argv)


def validate(job: Job) -> None:
    """Measure, evaluate, record; raise when a required gate failed.

    A backbone that is being built has no PCA version yet, and the gates on that do not apply.
    """
    measured = Measured.of(job)
    findings = measure(measured)
    gates = evaluate(findings, job.settings)
    job.recorder.record(
        Validated(
            features=findings.rows - findings.quarantined,
            quarantine=measured.reasons(),
            probe=Probe(raw=findings.probe_raw, embedded=findings.probe_embedded),
            gates=gates,
            snapshots={name: job.start[name] for name in DATA_TABLES},
        )
    )
    for gate in gates:
        log.info("gate %-24s %-8s %s: %s", gate.name, gate.severity, "passed" if gate.passed else "FAILED", gate.detail)
    if broken := failed(gates):
        details = "; ".join(f"{gate.name}: {gate.detail}" for gate in broken)
        raise GateError(
            f"required gates failed, nothing is published and readers stay where they were: {details}. Look at the "
            "run's report, fix the cause, and clear the run from `wait_for_lease`"
        )


if __name__ == "__main__":
    sys.exit(main())
