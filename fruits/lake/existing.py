"""The lake for those who only read: nothing is made where there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fruits.denials import denials_explained
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake, glue_problem, open_catalog
from fruits.lake.schemas import TABLES
from fruits.settings import Settings


class NoLakeError(FruitsError):
    """There is no lake at that place; nothing was made there."""


def open_read_only(settings: Settings) -> Lake:
    """The lake of the settings, if there is one. Unlike ``Lake.open`` this makes nothing, whatever is missing.

    Raises:
        NoLakeError: when there is no lake; says which part was looked for.
        FruitsError: when the catalog's database cannot be asked, or catalog and lake are not of each other.
    """
    for file in _local_parts(settings):
        if not file.exists():
            raise NoLakeError(f"no lake there: {file} does not exist; check FRUITS_LAKE and FRUITS_CATALOG_URI")
    tables = _tables(settings)
    missing = [table.name for table in TABLES if table.name not in tables]
    if missing:
        raise NoLakeError(
            f"no lake there: catalog {settings.catalog_name!r} has no tables {', '.join(missing)} in namespace "
            f"{settings.namespace!r}; a first run of the DAG makes them. Or check FRUITS_CATALOG_URI, "
            "FRUITS_CATALOG_NAME and FRUITS_NAMESPACE"
        )
    lake = Lake(settings)
    lake.check_location()
    return lake


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Lease what catalog, stores and servers raise into a message that says what to check."""
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.exceptions import BaseError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with denials_explained():
            yield
    except (BotoCoreError, ClientError, BaseError, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).partition("\n")[0].split()) or type(error).__name__
        raise FruitsError(
            f"lake {settings.lake}: {reason}; check FRUITS_LAKE, FRUITS_CATALOG_URI and the network, or ask "
            "`fruits doctor`"
        ) from error


def _local_parts(settings: Settings) -> list[Path]:
    catalog, lake = urlsplit(settings.catalog_uri.get_secret_value()), urlsplit(settings.lake)
    files = [Path(unquote(catalog.path)[1:])] if catalog.scheme == "sqlite" else []
    return [*files, Path(unquote(lake.path))] if lake.scheme == "file" else files


def _tables(settings: Settings) -> set[str]:
    """The names of the tables in the catalog; empty when there is no catalog in the database."""
    from botocore.exceptions import BotoCoreError, ClientError
    from pyiceberg.exceptions import NoSuchNamespaceError
    from sqlalchemy.exc import OperationalError, ProgrammingError, SQLAlchemyError

    try:
        catalog = open_catalog(settings, init_catalog_tables="false")
        with denials_explained():
            return {name for _, name in catalog.list_tables(settings.namespace)}
    except NoSuchNamespaceError:
        return set()
    except (BotoCoreError, ClientError) as error:
        raise glue_problem(settings, error) from error
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        absent = "no such table" in reason or ("does not exist" in reason and "iceberg_" in reason)
        if isinstance(error, OperationalError | ProgrammingError) and absent:
            return set()
        shown = settings.catalog_uri.get_secret_value().rpartition("@")[2]
        raise FruitsError(f"catalog database {shown}: {reason}; check FRUITS_CATALOG_URI") from error
