"""Featurize the photos of a run's manifest: GET, decode, preprocess and infer; few on the driver, many on executors.

Reads the run's plan.json and manifest.parquet from the lake; writes the tables `features` and `quarantine` on the
attempt's own branch, chunk by chunk, and the run's featurize.json. Running it again goes on with the photos that the
attempt before has not committed: nothing doubles, and a killed attempt costs the work of a chunk.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fruits.photos.entry import Action
from fruits.run.chunks import Piece, in_chunks
from fruits.run.documents import Featurized, run_store
from fruits.run.manifest import DUE_ETAG, Manifest, StoredManifest, write_slices
from fruits.run.state import WRITTEN
from fruits.spark.featurizing import (
    Done,
    OutcomeCounts,
    check_something_done,
    chunk_limits,
    counts_there,
    outcomes_of,
    pieces_to_do,
    unread_of,
    usd_per_million,
    witnesses_of,
    write_outcomes,
)
from fruits.spark.job import Job, run_job

log = logging.getLogger("fruits")


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("featurize", __doc__ or "", featurize, argv)


def featurize(job: Job) -> None:
    """Bring the attempt's branches of `features` and `quarantine` to what the manifest asks for, chunk by chunk."""
    manifest = job.manifest()
    heads = job.resume_branches(*WRITTEN["featurize"])
    there = counts_there(job, heads)
    photos = manifest.count(Action.CREATE) + manifest.count(Action.UPDATE)
    if there.images:
        log.info("%d of %d photos are there, from the attempts before", there.images, photos)
    witnesses = witnesses_of(job, manifest) if photos > there.images else ()
    done = Done(there)
    for chunk in in_chunks(pieces_to_do(job, manifest, heads), chunk_limits(job, photos)):
        done += carry_out(job, chunk, witnesses, before=done.counts.images, total=photos)
    check_something_done(done)
    name, actions = save_carried_out(job, manifest, done.unread)
    seconds = job.recorder.document.seconds.get("featurize", 0.0)
    images, core_seconds = done.counts.images - there.images, sum(done.counts.photo_seconds.values())
    result = Featurized(
        **asdict(done.counts),
        images_per_second=round(images / seconds, 1) if seconds else 0.0,
        usd_per_million=usd_per_million(core_seconds, images, job.settings.core_hour_usd),
        resumed=there.images,
        removed=actions[Action.DELETE],
        wrote=job.wrote(*WRITTEN["featurize"]),
        manifest=name,
        carried_out=actions if name else None,
    )
    job.recorder.record(result)
    log.info(
        "%d photos: %d features, quarantined %s, pending %s, %.1f img/s",
        result.images,
        result.features,
        dict(result.quarantine),
        dict(result.pending),
        result.images_per_second,
    )


def carry_out(job: Job, chunk: Piece, witnesses: Sequence[str], *, before: int, total: int) -> Done:
    """Featurize a chunk's photos, then commit their rows; ``before`` of the run's ``total`` photos are done.

    A photo that can't be read is quarantined or unread, and stops nothing. The rows of an unread photo stay. So new
    rows come before old rows leave: a retry may not be able to read a photo that a killed attempt has read.
    """
    photos = chunk.photos
    if not len(photos):
        remove_replaced(job, chunk.entries)
        return Done(OutcomeCounts(), entries=len(chunk.entries))
    with job.phase("featurize"):
        outcomes = outcomes_of(job, photos, witnesses, before=before, total=total)
    unread, example = unread_of(job, outcomes, witnesses)
    entries = less_unread(job, chunk.entries, unread)
    with job.phase("write"):
        write_outcomes(job, outcomes)
    remove_replaced(job, entries)
    with job.phase("write"):
        keep_unread(job, entries)
    return Done(outcomes.counts, unread, example, len(entries) - len(entries.kept_keys))


def less_unread(job: Job, entries: Manifest, unread: Sequence[str]) -> Manifest:
    """Entries as carried out, without photos that could not be read; see ``Manifest.without``."""
    return entries.without(unread, rebuilt=job.run.request.mode == "rebuild") if unread else entries


def remove_replaced(job: Job, entries: Manifest) -> None:
    """Take the rows of updated and deleted objects out of the tables, but none that this run has read the photo of."""
    with job.phase("remove"):
        for name in WRITTEN["featurize"]:
            job.tables.delete_keys(name, entries.replaced_keys, job.run.model_id, but_of_run=job.run.run_id)


def keep_unread(job: Job, entries: Manifest) -> None:
    """Write the rows of photos that a rebuild could not read once more, as rows of this run that are due again."""
    for name in WRITTEN["featurize"]:
        job.tables.copy_keys(
            name, job.start[name], entries.kept_keys, job.run.model_id, etag=DUE_ETAG, run_id=job.run.run_id
        )


def save_carried_out(
    job: Job, manifest: StoredManifest, unread: Sequence[str]
) -> tuple[str | None, Mapping[Action, int]]:
    """Write the manifest that was carried out for the jobs after this one, where it is not the plan's own.

    Returns its name, or None; and the number of its entries by action.
    """
    if not unread:
        return None, manifest.actions
    name = f"carried_out_{job.recorder.document.token}.parquet"
    slices = (less_unread(job, entries, unread) for entries in manifest.slices())
    return name, write_slices(run_store(job.settings, job.run.key), slices, name)


if __name__ == "__main__":
    sys.exit(main())
