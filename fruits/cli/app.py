"""The commands with their options and help. The module of a command's name does the work; a call imports the module."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fruits.errors import ExitCode, FruitsError

if TYPE_CHECKING:
    from fruits.serve.export import ExportTable

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of an embedded stack (`make run`). Default: FRUITS_LAKE, else data/ here."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")]


class Commands(TyperGroup):
    """Print the message of a ``FruitsError`` and exit with its code; with ``--json``, print any error as JSON."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        as_json = "--json" in ctx.args  # the command has not parsed its arguments yet
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


@contextmanager
def answered() -> Iterator[None]:
    """Refuse to go on without an answer to a question: the input has ended, or a person typed Ctrl-C."""
    try:
        yield
    except typer.Abort:
        raise FruitsError("no answer, so nothing was done; add --yes where no person can answer") from None


def confirm(question: str, *, yes: bool) -> None:
    """Ask a person on the terminal; end the command unless the answer is yes.

    An empty question is not asked, and none is with ``yes``, the option.
    """
    if yes or not question:
        return
    with answered():
        if not typer.confirm(question, err=True):
            raise typer.Exit(ExitCode.BAD_INPUT)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The lake of fruit photos: see what is published and what a run would do, decide, identify, repair.",
)


@app.command()
def status(
    publications: Annotated[
        bool, typer.Option("--publications", help="List all publications, and which a rollback can reach.")
    ] = False,
    runs: Annotated[int, typer.Option(min=0, help="How many of the last runs to show.")] = 5,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show the current publication and the last runs."""
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
    precision: Annotated[str | None, typer.Option(help="`fp32` or `int8`. Default: FRUITS_PRECISION.")] = None,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Read photos in quarantine again.")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Featurize every photo again.")] = False,
    keys: Annotated[str, typer.Option(help="How many keys of each action to list, or `all`.")] = "10",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what a run would do now. Changes nothing."""
    from fruits.cli import plan as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.run.request import resolve_request

    params = {
        "prefix": prefix,
        "keys": key,
        "limit": limit,
        "backbone": backbone,
        "precision": precision,
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
    """Identify photos: labels with their confidence, and the nearest published photos.

    The exit code is 2 if any of the photos cannot be read.
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
def serve(
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on. The service knows no passwords: keep others behind what does.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8100,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Photos computed at once. Default: one for each core.")
    ] = None,
    waiting: Annotated[int, typer.Option(min=0, help="More photos that may be sent or wait at once.")] = 16,
    refresh: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks for a new publication.")] = 15,
    data: Data = None,
) -> None:
    """Answer for photos by HTTP, from the current publication: POST /identify. Ends with Ctrl-C."""
    from fruits.cli import serve as command
    from fruits.cli.place import opened

    with opened(data, "lake") as place:
        command.run(place.settings, host=host, port=port, workers=workers, waiting=waiting, refresh=refresh)


@app.command()
def index(data: Data = None, as_json: Json = False) -> None:
    """Build the index in which the nearest of very many published photos are found; needed beyond 100,000 photos.

    `fruits serve` does the same by itself after each publication.
    """
    from fruits.cli import index as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened

    with opened(data, "lake") as place:
        document = command.build_index(place.settings)
    answer(document, command.render, as_json=as_json)


export = typer.Typer(
    no_args_is_help=True, help="Write to files what is published: a table, a dataset, a model for phones."
)
app.add_typer(export, name="export")

Target = Annotated[Path, typer.Option("--output", "-o", help="File to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")]


def _export_table(table: "ExportTable") -> Callable[..., None]:
    """The command that exports a table."""

    def command(
        output: Target,
        file_format: Annotated[
            str | None, typer.Option("--format", help="parquet, csv or npz. Default: by the file's name.")
        ] = None,
        overwrite: Overwrite = False,
        data: Data = None,
        as_json: Json = False,
    ) -> None:
        from fruits.cli import export as command
        from fruits.cli.output import answer
        from fruits.cli.place import opened

        with opened(data, "lake") as place:
            document = command.write_table(place.settings, table, output, file_format, overwrite=overwrite)
        answer(document, command.render, as_json=as_json)

    return command


_TABLES: "tuple[ExportTable, ...]" = ("features", "embeddings", "quarantine", "pca_models")
for _name in _TABLES:
    export.command(_name, help=f"Write the published rows of {_name} to one file.")(_export_table(_name))


@export.command("dataset")
def export_dataset(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.", show_default=False)],
    file_format: Annotated[
        str, typer.Option("--format", help="parquet, csv, npz, or tfrecord (TensorFlow).")
    ] = "parquet",
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Embeddings beside the features.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is a dataset.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write the features of all published photos to a folder to train from: labels, splits, a card."""
    from fruits.cli import export as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened

    with opened(data, "lake") as place:
        document = command.write_dataset(
            place.settings, output, file_format, embeddings=embeddings, overwrite=overwrite
        )
    answer(document, command.render, as_json=as_json)


@export.command("model")
def export_model(
    output: Target,
    prototypes: Annotated[int, typer.Option(min=1, help="Directions of each label that stand for its photos.")] = 16,
    overwrite: Overwrite = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write the published engine to one LiteRT file for phones: labels, sets, known or not. docs/mobile.md uses it."""
    from fruits.cli import export_model as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened

    with opened(data, "lake") as place:
        document = command.write(place.settings, output, prototypes, overwrite=overwrite)
    answer(document, command.render, as_json=as_json)


@app.command()
def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.", show_default=False)],
    run: Annotated[
        str | None, typer.Argument(help="Run id, or the run's folder. Default: the current publication.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run, or of the current publication, to one self-contained HTML file."""
    from fruits.cli import report as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened

    with opened(data, "bucket") as place:
        document = command.write(place.settings, run, output)
    answer(document, command.render, as_json=as_json)


@app.command()
def models(data: Data = None, as_json: Json = False) -> None:
    """List the staged backbones, their features and PCA versions."""
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
    why: Annotated[str, typer.Option(help="With --pin: the reason, which `fruits status` shows.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make an older publication current again."""
    from fruits.cli import rollback as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.publication import readers_base
    from fruits.lake.reader import open_read_only

    if as_json and not yes:
        raise FruitsError("rollback --json does not ask, so it needs --yes")
    if pin != bool(why.strip()):
        raise FruitsError("rollback: --pin and --why go together; a pin needs a reason, which `fruits status` shows")
    with opened(data, "lake") as place:
        lake = open_read_only(place.settings)
        base = readers_base(lake)
        question = command.preview(lake, base, publication)
        confirm(question, yes=yes)
        document = command.run(lake, base, publication, why if pin else None)
    answer(document, command.render, as_json=as_json)


@app.command()
def pin(
    why: Annotated[str, typer.Option(help="The reason, which `fruits status` shows.", show_default=False)],
    publication: Annotated[
        str | None, typer.Argument(help="Its id or sequence. Default: the current publication.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accepted as elsewhere; a pin never asks.")] = False,  # noqa: ARG001
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
    why: Annotated[str, typer.Option(help="The reason, which the lake keeps.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Record another server, bucket or prefix, as the settings name it, as the place of the lake's photos."""
    from fruits.cli import move_photos as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    if as_json and not yes:
        raise FruitsError("move-photos --json does not ask, so it needs --yes")
    with opened(data, "lake") as place:
        lake = open_read_only(place.settings)
        question = command.preview(lake)
        confirm(question, yes=yes)
        document = command.run(lake, why)
    answer(document, command.render, as_json=as_json)


@app.command()
def approve(
    digest: Annotated[
        str | None, typer.Argument(help="Start of the digest: `fruits status`. Default: the only question.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Run whose failed gates to approve: its key, or its run id.")] = None,
    gate: Annotated[
        list[str] | None, typer.Option(help="With --run: a required gate that failed; give each of them.")
    ] = None,
    why: Annotated[str, typer.Option(help="The reason, which the publication keeps.")] = "",
    by: Annotated[str | None, typer.Option(help="Who approves. Default: your user name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Approve a question that waits: deletions, failed gates, a rebuild, a refit, a switch of backbone."""
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
            with answered():
                why = why or typer.prompt("Why", err=True)
        confirm("Approve?", yes=yes)
        document = command.run(place.settings, question, by=by, why=why)
    answer(document, command.render, as_json=as_json)


@app.command()
def doctor(
    *,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Only check that runs keep the tables up to date; for cron and CloudWatch."),
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Check everything that a run needs, and print a fix for each fault. The exit code is 2 after a fault."""
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


catalog = typer.Typer(no_args_is_help=True, help="The catalog, which names the current files of the tables.")
app.add_typer(catalog, name="catalog")


@catalog.command("properties")
def catalog_properties(data: Data = None, as_json: Json = False) -> None:
    """Print the properties that open the tables in PyIceberg and Spark, without passwords."""
    from fruits.cli import catalog as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened

    with opened(data, "lake") as place:
        document = command.properties(place.settings)
    answer(document, command.render_properties, as_json=as_json)


@catalog.command("rebuild")
def rebuild_catalog(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare catalog and lake, and change nothing.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Rebuild the catalog from the lake: after its loss, or after the restoration of a backup of any age."""
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
            confirm(question, yes=yes)
            with command.no_run_works(place.settings):
                document = command.run(place.settings, plan_rebuild(place.settings))
    answer(document, command.render, as_json=as_json)


quarantine = typer.Typer(no_args_is_help=True, help="Objects that could not be featurized.")
app.add_typer(quarantine, name="quarantine")

Reason = Annotated[str | None, typer.Option("--reason", help="Only objects in quarantine for this reason.")]


@quarantine.command("list")
def list_quarantine(
    reason: Reason = None,
    prefix: Annotated[str, typer.Option(help="Only keys that start with this.")] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the objects in quarantine, with the reasons."""
    from fruits.cli import quarantine as command
    from fruits.cli.output import answer
    from fruits.cli.place import opened
    from fruits.lake.reader import open_read_only

    with opened(data, "lake") as place:
        document = command.read(open_read_only(place.settings), reason=reason, prefix=prefix)
    answer(document, command.render, as_json=as_json)


@quarantine.command("retry")
def retry_quarantine(
    keys: Annotated[list[str] | None, typer.Argument(help="Object keys. Default: all.")] = None,
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
        objects = command.read(open_read_only(place.settings), reason=reason)
        conf = command.conf_of_retry(objects, keys or (), everything=not keys and reason is None)
        document = {"run_id": trigger(place, conf), "conf": conf}
    answer(document, command.render_retry, as_json=as_json)
