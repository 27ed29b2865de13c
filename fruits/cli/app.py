"""The commands: their options and help. What a command does is in the module of its name, imported when it is used."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fruits.errors import ExitCode, FruitsError

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of an embedded stack (`make run`). Default: FRUITS_LAKE, else data/ here."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")]


class Commands(TyperGroup):
    """Ends a command that met an error a person can mend with its message and its exit code.

    With ``--json``, any error is one JSON document as well.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        as_json = "--json" in ctx.args  # the arguments of the command, which the command has not read yet
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except FruitsError as error:
            from fruits.cli.output import answer_error, printable

            if as_json:
                answer_error(error)
            else:
                typer.echo(printable(error), err=True)
            raise typer.Exit(error.exit_code) from None
        except Exception as error:  # an option that does not exist, or a defect
            from fruits.cli.output import answer_error

            if as_json:
                answer_error(error)
            raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look after the lake of fruit photos: what is published, what a run would do, what a photo shows.",
)


@app.command()
def status(
    publications: Annotated[
        bool, typer.Option("--publications", help="All publications, and which to roll back to.")
    ] = False,
    runs: Annotated[int, typer.Option(min=0, help="How many of the last runs to show.")] = 5,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """What readers see now, and what the last runs did."""
    from fruits.cli import status as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    with opened(data, "lake") as place:
        lake = open_read_only(place.settings)
        document = command.read(place.settings, lake, newest=runs, with_publications=publications)
    answer(document, command.render, as_json=as_json)


@app.command()
def plan(
    *,
    prefix: Annotated[str | None, typer.Option(help="Only keys that start with this. Default: FRUITS_PREFIX.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Only this object key; may be given several times.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many photos.")] = None,
    backbone: Annotated[str | None, typer.Option(help="`efficientnet-lite0` or a `keras.applications` model.")] = None,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Read photos in quarantine again.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Featurize every photo again.")] = False,
    keys: Annotated[str, typer.Option(help="How many keys of each action to list, or `all`.")] = "10",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """What a run would do now. Changes nothing."""
    from fruits.cli import plan as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.run.request import resolve_request

    params = {
        "prefix": prefix,
        "keys": key,
        "limit": limit,
        "backbone": backbone,
        "retry_quarantined": retry_quarantined,
        "mode": "rebuild" if rebuild else "reconcile",
        "dry_run": True,
    }
    most = _most(keys)
    with opened(data, "bucket") as place:
        document = command.read(place.settings, resolve_request(params, place.settings), keys=most)
    answer(document, command.render, as_json=as_json)


def _most(keys: str) -> int | None:
    if keys == "all":
        return None
    if keys.isdecimal():
        return int(keys)
    raise FruitsError(f"--keys {keys!r}: expected a number, or `all`")


@app.command()
def identify(
    photos: Annotated[list[Path], typer.Argument(help="Photo files.", show_default=False)],
    nearest: Annotated[int, typer.Option(min=0, help="How many of the nearest published photos to name.")] = 5,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """What photos show: labels with their confidence, and the nearest photos in the tables.

    Exit code 2 when any of the photos cannot be read.
    """
    from fruits.cli import identify as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened

    with opened(data, "lake") as place:
        document = command.read(place.settings, photos, nearest=nearest)
    answer(document, command.render, as_json=as_json)
    if any(photo["error"] for photo in document["photos"]):
        raise typer.Exit(ExitCode.BAD_INPUT)


@app.command()
def export(
    table: Annotated[str, typer.Argument(help="features, embeddings, quarantine or pca_models.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.", show_default=False)],
    file_format: Annotated[
        str | None, typer.Option("--format", help="parquet, csv or npz. Default: by the file's name.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """The published rows of a table as one file: Parquet, CSV or NumPy."""
    from fruits.cli import export as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened

    with opened(data, "lake") as place:
        document = command.write(place.settings, table, output, file_format, overwrite=overwrite)
    answer(document, command.render, as_json=as_json)


@app.command()
def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.", show_default=False)],
    run: Annotated[
        str | None, typer.Argument(help="Run id, or the run's folder. Default: what readers see now.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """One run, or what readers see now, as one self-contained HTML page."""
    from fruits.cli import report as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened

    with opened(data, "bucket") as place:
        document = command.write(place.settings, run, output)
    answer(document, command.render, as_json=as_json)


@app.command()
def models(data: Data = None, as_json: Json = False) -> None:
    """The staged backbones, their features and PCA versions."""
    from fruits.cli import models as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    with opened(data, "lake") as place:
        document = command.read(place.settings, open_read_only(place.settings))
    answer(document, command.render, as_json=as_json)


@app.command()
def rollback(
    publication: Annotated[str, typer.Argument(help="Its id or sequence: `fruits status --publications`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Stay there until `fruits unpin`; needs --why.")] = False,
    why: Annotated[str, typer.Option(help="With --pin: the reason, for whoever finds the pin.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make an older publication current again."""
    from fruits.cli import rollback as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    if as_json and not yes:
        raise FruitsError("rollback --json does not ask, so it needs --yes")
    if pin != bool(why.strip()):
        raise FruitsError("rollback: --pin and --why go together; a pin needs a reason, for whoever finds it")
    with opened(data, "lake") as place:
        lake = open_read_only(place.settings)
        question = command.preview(lake, publication)
        if question and not yes and not typer.confirm(question, err=True):
            raise typer.Exit(ExitCode.BAD_INPUT)
        document = command.run(lake, publication, why if pin else None)
    answer(document, command.render, as_json=as_json)


@app.command()
def pin(
    why: Annotated[str, typer.Option(help="The reason, for whoever finds the pin.", show_default=False)],
    publication: Annotated[
        str | None, typer.Argument(help="Its id or sequence. Default: the one that readers see.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Stay on a publication: runs end without work, until `fruits unpin`."""
    from fruits.cli import pin as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    with opened(data, "lake") as place:
        document = command.run(open_read_only(place.settings), publication, why)
    answer(document, command.render, as_json=as_json)


@app.command()
def unpin(data: Data = None, as_json: Json = False) -> None:
    """Let runs publish again."""
    from fruits.cli import pin as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    with opened(data, "lake") as place:
        open_read_only(place.settings)
        document = command.lift(place.settings)
    answer(document, command.render_lifted, as_json=as_json)


@app.command("move-photos")
def move_photos(
    why: Annotated[str, typer.Option(help="The reason, for those who look later.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Record that the lake's photos are where the settings say now: another server, bucket or prefix."""
    from fruits.cli import move_photos as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    if as_json and not yes:
        raise FruitsError("move-photos --json does not ask, so it needs --yes")
    with opened(data, "lake") as place:
        lake = open_read_only(place.settings)
        question = command.preview(lake)
        if question and not yes and not typer.confirm(question, err=True):
            raise typer.Exit(ExitCode.BAD_INPUT)
        document = command.run(lake, why)
    answer(document, command.render, as_json=as_json)


@app.command()
def approve(
    digest: Annotated[
        str | None, typer.Argument(help="Start of the digest: `fruits status`. Default: the only question.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Run whose failed gates to approve: its key, or its run id.")] = None,
    gate: Annotated[
        list[str] | None, typer.Option(help="With --run: each required gate that failed, one after the other.")
    ] = None,
    why: Annotated[str, typer.Option(help="The reason, which the publication keeps.")] = "",
    by: Annotated[str | None, typer.Option(help="Who approves. Default: your user name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Approve what waits for a person: deletions beyond the bounds, failed gates, a large rebuild."""
    from fruits.cli import approve as command
    from fruits.cli.output import answer, warn
    from fruits.cli.place import opened

    if as_json and not yes:
        raise FruitsError("approve --json does not ask, so it needs --yes")
    with opened(data, "lake") as place:
        question = command.find(place.settings, digest, run, gate or ())
        if not yes:
            for line in command.preview(question):
                warn(line)
            why = why or typer.prompt("Why", err=True)
            if not typer.confirm("Approve?", err=True):
                raise typer.Exit(ExitCode.BAD_INPUT)
        document = command.run(place.settings, question, by=by, why=why)
    answer(document, command.render, as_json=as_json)


@app.command()
def doctor(
    *,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Only whether runs keep the tables up to date; for cron and CloudWatch."),
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Check everything that a run needs, and say how to mend what is wrong. Exit code 2 when something is."""
    from fruits.cli import doctor as command
    from fruits.cli.output import answer

    document = command.examine_freshness(data) if stale else command.examine(data)
    answer(document, command.render, as_json=as_json)
    if not document["ok"]:
        raise typer.Exit(ExitCode.BAD_INPUT)


@app.command()
def verify(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Start the run that mends the differences.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Compare all that is published with the bucket and with itself. Exit code 2 when anything differs."""
    from fruits.cli import verify as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened

    with opened(data, "bucket") as place:
        document = command.examine(place, repair=repair)
    answer(document, command.render, as_json=as_json)
    if not document["ok"]:
        raise typer.Exit(ExitCode.BAD_INPUT)


catalog = typer.Typer(no_args_is_help=True, help="The catalog: which files are the current tables.")
app.add_typer(catalog, name="catalog")


@catalog.command("rebuild")
def rebuild_catalog(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare catalog and lake, and change nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make the catalog again from the lake: after its loss, or after the restoration of a backup of any age."""
    from fruits.cli import catalog as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.rebuild import plan_rebuild

    if as_json and not (yes or dry_run):
        raise FruitsError("catalog rebuild --json does not ask, so it needs --yes or --dry-run")
    with opened(data, "files") as place:
        if dry_run:
            document = command.to_document(plan_rebuild(place.settings), changed=False)
        else:
            question = command.preview(plan_rebuild(place.settings))
            if question and not yes and not typer.confirm(question, err=True):
                raise typer.Exit(ExitCode.BAD_INPUT)
            with command.no_run_works(place.settings):
                document = command.run(place.settings, plan_rebuild(place.settings))
    answer(document, command.render, as_json=as_json)


quarantine = typer.Typer(no_args_is_help=True, help="Objects that could not be featurized.")
app.add_typer(quarantine, name="quarantine")

Reason = Annotated[str | None, typer.Option("--reason", help="Only those in quarantine for this reason.")]


@quarantine.command("list")
def list_quarantine(
    reason: Reason = None,
    prefix: Annotated[str, typer.Option(help="Only keys that start with this.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """The objects in quarantine, and why."""
    from fruits.cli import quarantine as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    with opened(data, "lake") as place:
        document = command.read(open_read_only(place.settings), reason=reason, prefix=prefix)
    answer(document, command.render, as_json=as_json)


@quarantine.command("retry")
def retry_quarantine(
    keys: Annotated[list[str] | None, typer.Argument(help="Object keys. Default: all of them.")] = None,
    reason: Reason = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Start a run that reads quarantined objects again."""
    from fruits.cli import quarantine as command
    from fruits.cli.airflow import trigger
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    with opened(data, "lake") as place:
        found = command.read(open_read_only(place.settings), reason=reason)
        conf = command.conf_of_retry(found, keys or (), everything=not keys and reason is None)
        document = {"run_id": trigger(place, conf), "conf": conf}
    answer(document, command.render_retry, as_json=as_json)
