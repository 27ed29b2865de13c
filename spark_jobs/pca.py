"""Bring PCA statistics, model and embeddings of a run up to date.

Merges the new rows into the backbone's running moments and takes the removed rows out, fits a new PCA version when the
policy says so (then projects every row), and otherwise projects the changed rows only. Fits the classifier on the same
statistics, and calibrates it on a sample of the photos. A refit that would replace more
embeddings than FRUITS_APPROVAL_ROWS waits for a person's approval, and the run goes on under the PCA that there is.
Reads `features` at the snapshot that featurize wrote; writes `pca_statistics`, `label_statistics`, `pca_models`,
`embeddings`, `calibration_sample` and `classifiers` on the attempt's own branch, and the run's pca.json.
"""

import logging
import sys

from fruits.errors import FruitsError
from fruits.lake.pca_tables import PCAVersion
from fruits.run.decisions import Decisions, described
from fruits.run.documents import Featurized, Projected
from fruits.run.state import WRITTEN
from fruits.spark.classification import update_classifier, update_sample
from fruits.spark.job import Job, run_job
from fruits.spark.projection import (
    current_version,
    decide_refit,
    fit_version,
    project,
    reason_to_refit,
    unprojected_features,
)
from fruits.spark.statistics import recompute, update_statistics

log = logging.getLogger("fruits")


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("pca", __doc__ or "", update_pca, argv)


def update_pca(job: Job) -> None:
    """Statistics first; then the decision to refit; then the embeddings, all anew or of the changed rows only."""
    job.start_branches(*WRITTEN["pca"])
    replaced = job.manifest().replaced_keys
    with job.phase("moments"):
        statistics = update_statistics(job, replaced)
    moments = statistics.moments
    with job.phase("sample"):
        sample = update_sample(job, replaced)
    with job.phase("remove"):
        job.tables.delete_keys("embeddings", replaced, job.run.model_id)
    known: dict[str, object] = {"n_statistics": moments.n, "recomputed": statistics.recomputed}
    if job.run.building:  # fitted once, when the backbone is complete
        log.info("backbone %s is not complete yet: statistics of %d photos, no PCA", job.run.model_id, moments.n)
        record(job, action="none", reason=None, pca_id=None, drift=None, projected=0, **known)
        return
    current = current_version(job)
    if current is None and moments.n == 0:
        raise FruitsError(message_of_nothing_to_fit(job))
    refit = reason_to_refit(job, current, moments)
    reason = refit.reason
    decisions = decide_refit(job, reason) if current else Decisions()
    if decisions.undecided:
        log.warning("pca: %s", described(decisions.undecided[0]))
        reason = None
    if reason is None and current is not None:
        action, version, projected = "project", current, project_changed(job, current)
    else:
        # A refit that a person asks for also mends statistics that are not those of the rows.
        if not statistics.labelled or (current is not None and job.run.request.refit == "always"):
            with job.phase("moments"):
                moments = recompute(job)
            known |= {"n_statistics": moments.n, "recomputed": True}
        if refit.keep:  # readers keep it if the new version fails its gates
            project_changed(job, refit.keep)
        action, (version, projected) = "fit", fit_version(job, moments, reason or "")
    with job.phase("classifier"):
        known["classified"] = update_classifier(job, moments, sample)
    k, n = version.pca.n_components, version.pca.n
    why = reason or "no refit is due"
    log.info("%s %s: k=%d of n=%d, %d rows projected (%s)", action, version.pca_id, k, n, projected, why)
    known |= {"undecided": decisions.undecided, "approvals": decisions.approvals}
    keep = refit.keep.pca_id if refit.keep and action == "fit" else None
    known |= {"drift": refit.drift, "gain": refit.gain, "keep": keep}
    record(job, action=action, reason=reason, projected=projected, **figures(version), **known)


def project_changed(job: Job, version: PCAVersion) -> int:
    """Project the rows without an embedding under a version; returns how many."""
    with job.phase("project"):
        return project(job, version.pca_id, version.pca, unprojected_features(job, version.pca_id))


def figures(version: PCAVersion) -> dict[str, object]:
    """What the document tells of a version."""
    pca = version.pca
    return {
        "pca_id": version.pca_id,
        "n": pca.n,
        "k": pca.n_components,
        "explained_variance": float(pca.explained_variance_ratio.sum()),
        "explained_variance_ratio": tuple(float(ratio) for ratio in pca.explained_variance_ratio),
    }


def record(job: Job, **values: object) -> None:
    """Record what the job did, the snapshots that it read, and those that it wrote."""
    read = {name: job.start[name] for name in WRITTEN["featurize"]}
    job.recorder.record(Projected.model_validate({**values, "read": read, "wrote": job.wrote(*WRITTEN["pca"])}))


def message_of_nothing_to_fit(job: Job) -> str:
    """The message of a first run without a photo to fit on."""
    document = job.documents.featurize
    featurized: Featurized | None = document.done if document else None
    images, features = (featurized.images, featurized.features) if featurized else (0, 0)
    quarantine = featurized.quarantine if featurized else {}
    reasons = ", ".join(f"{count} {reason}" for reason, count in quarantine.items()) or "none"
    return (
        f"PCA: no photo in the fit split (`train`). Of {images} objects {features} could be featurized; quarantined: "
        f"{reasons}. The others are held out: their keys name a split such as `Test`, or a hash of the key decided so "
        "(FRUITS_HOLDOUT_SHARE). Add photos as Training/<label>/<file>, or check that FRUITS_KEY_PATTERN matches your "
        "keys."
    )


if __name__ == "__main__":
    sys.exit(main())
