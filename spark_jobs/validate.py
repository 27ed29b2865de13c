"""Check what a run wrote, before anybody reads it.

Measures the snapshots that featurize and pca wrote, scores the linear probe when there is a new PCA version, and
evaluates the gates. Writes the run's validate.json, with the snapshots that it measured, whatever the verdict; exit
code 3 when a required gate fails, unless a person has approved exactly these findings (`fruits approve`).
"""

import logging
import sys

from fruits.analysis.gates import evaluate, failed, only_of_version, refused_refit
from fruits.errors import GateError
from fruits.lake.approvals import ask
from fruits.lake.schemas import DATA_TABLES
from fruits.run.decisions import gates_question
from fruits.run.documents import Probe, Validated
from fruits.spark.job import Job, run_job
from fruits.spark.measurements import Measured, measure

log = logging.getLogger("fruits")


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("validate", __doc__ or "", validate, argv)


def validate(job: Job) -> None:
    """Measure, evaluate, record; raise when a required gate failed and nobody has approved that.

    A backbone that is being built has no PCA version yet, and the gates on that do not apply. Where a refit that nobody
    asked for fails its gates, the run is published under the PCA version that readers have.
    """
    projected = job.documents.projected
    pca_id, keep = (projected.pca_id, projected.keep) if projected else (None, None)
    findings, counters = measure(Measured.of(job, pca_id))
    gates = evaluate(findings, job.settings)
    if keep and only_of_version(failed(gates)):
        kept_findings, _ = measure(Measured.of(job, keep))
        kept_gates = evaluate(kept_findings, job.settings)
        if not failed(kept_gates):
            gates = (*kept_gates, refused_refit(str(pca_id), keep, failed(gates)))
            findings, pca_id = kept_findings, keep
    snapshots = {name: job.start[name] for name in DATA_TABLES}
    broken = failed(gates)
    question = ask(job.settings, gates_question(job.run, snapshots, broken)) if broken else None
    job.recorder.record(
        Validated(
            features=findings.rows - findings.quarantined,
            quarantine=counters.of_backbone(job.run.model_id).reasons,
            probe=Probe(raw=findings.probe_raw, embedded=findings.probe_embedded, rows=findings.probe_rows),
            gates=gates,
            snapshots=snapshots,
            pca_id=pca_id,
            counters=counters.counts,
            approvals=(question,) if question and question.decided else (),
        )
    )
    for gate in gates:
        log.info("gate %-24s %-8s %s: %s", gate.name, gate.severity, "passed" if gate.passed else "FAILED", gate.detail)
    if question is None:
        return
    if question.decided:
        log.warning("%s Approved by %s: %s", question.question, question.approved_by, question.why)
        return
    details = "; ".join(f"{gate.name}: {gate.detail}" for gate in broken)
    raise GateError(
        f"required gates failed, nothing is published and readers stay where they were: {details}. Look at the run's "
        "report, fix the cause, and clear the run from `wait_for_lease`. To publish these findings all the same, type "
        f"`{question.command}`, and clear `validate`"
    )


if __name__ == "__main__":
    sys.exit(main())
