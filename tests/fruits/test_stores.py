import ast
import hashlib
import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import obstore
import pytest
from botocore.exceptions import BotoCoreError
from obstore.exceptions import AlreadyExistsError, GenericError

from fruits import stores
from fruits.errors import FruitsError, TransientError
from fruits.photos.listing import list_objects
from fruits.stores import (
    check_lake,
    check_photos,
    effect,
    effects_watched,
    exists,
    head,
    lake_store,
    list_client,
    list_files,
    open_store,
    photo_store,
    read_bytes,
    read_json,
    remove_files,
    write_bytes,
    write_json,
)
from local.stack import free_ports


@pytest.fixture(params=["file", "s3"])
def settings(request, make_settings):
    return make_settings(request.param)


def test_what_was_written_is_read_and_written_over(settings):
    store = lake_store(settings, "runs/one")
    for data in (b"first, which is longer", b"second"):
        write_bytes(store, "a/b c%20ü.bin", data)
        assert read_bytes(store, "a/b c%20ü.bin") == data
    document = {"label": "Pomme d'été", "counts": {"create": 3}, "none": None}
    write_json(store, "plan.json", document)
    assert read_json(store, "plan.json") == document
    assert "Pomme d'été" in read_bytes(store, "plan.json").decode()


def test_what_is_not_there_is_not_found(settings):
    store = lake_store(settings, "runs/one")
    assert not exists(store, "plan.json")
    for read in (read_bytes, read_json):
        with pytest.raises(FileNotFoundError):
            read(store, "plan.json")
    write_json(store, "plan.json", {})
    assert exists(store, "plan.json")


def test_folders_of_the_lake_are_apart_and_one_lake(settings):
    write_bytes(lake_store(settings, "runs/one"), "x", b"1")
    write_bytes(lake_store(settings, "runs/two"), "x", b"2")
    assert read_bytes(lake_store(settings), "runs/one/x") == b"1"
    assert read_bytes(lake_store(settings, "runs"), "two/x") == b"2"
    assert read_bytes(open_store(settings, f"{settings.lake}/runs/two"), "x") == b"2"


def test_a_lake_in_a_folder_may_have_any_name(make_settings, tmp_path):
    settings = make_settings(lake=f"file://{tmp_path}/a%20b/new")
    write_json(lake_store(settings, "runs"), "x.json", {"a": 1})
    assert json.loads((Path(tmp_path) / "a b" / "new" / "runs" / "x.json").read_text()) == {"a": 1}


def test_a_uri_of_another_kind_is_refused(make_settings):
    with pytest.raises(FruitsError, match=r"ftp://host/x: expected a URI that starts with file:/// or s3://"):
        open_store(make_settings(), "ftp://host/x")


def test_photos_are_read_from_the_bucket_of_the_settings(stack, make_settings, bucket):
    stack.client().put_object(Bucket=bucket, Key="Kiwi/100% a+b#?.jpg", Body=b"photo")
    assert read_bytes(photo_store(make_settings()), "Kiwi/100% a+b#?.jpg") == b"photo"


def test_of_several_writers_that_create_an_object_one_succeeds(settings):
    store = lake_store(settings, "leases")
    write_json(store, "1.json", {"run": "first"}, create=True)
    with pytest.raises(AlreadyExistsError):
        write_json(store, "1.json", {"run": "second"}, create=True)
    assert read_json(store, "1.json") == {"run": "first"}


def test_files_are_listed_and_removed_also_those_that_are_gone(settings):
    store = lake_store(settings, "runs")
    for path in ("one/a", "one/b", "two/a"):
        write_bytes(store, path, b"x")
    assert sorted(file["path"] for file in list_files(store)) == ["one/a", "one/b", "two/a"]
    assert sorted(file["path"] for file in list_files(store, "one")) == ["one/a", "one/b"]
    remove_files(store, "gone", "one/a", "gone too", "two/a")
    remove_files(store)
    assert [file["path"] for file in list_files(store)] == ["one/b"]


def test_an_object_in_one_part_has_its_md5_as_etag(make_settings):
    store, data = photo_store(make_settings()), os.urandom(12_000_000)
    write_bytes(store, "large.jpg", data, one_part=True)
    assert str(head(store, "large.jpg")["e_tag"]).strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_without_an_endpoint_the_stores_are_those_of_aws(stack, make_settings):
    settings = make_settings(s3_endpoint=None, bucket="orchard", lake="s3://lake/warehouse")
    photos = photo_store(settings)
    assert "endpoint" not in photos.config
    assert photos.config["virtual_hosted_style_request"] == "true"
    lake: Any = lake_store(settings, "runs")
    assert lake.prefix == "warehouse/runs"


class TestEffects:
    """Each write, each deletion and each commit is announced, and a watcher can make it fail or lose its answer."""

    def test_every_effect_is_announced_before_and_after_it_happens(self, settings):
        store, seen = lake_store(settings, "runs/one"), []

        def watch(kind, path, moment):
            shown = path.rpartition("/runs/")[2] if kind != "commit" else path
            seen.append((kind, shown, moment, exists(store, "plan.json")))

        with effects_watched(watch):
            write_json(store, "plan.json", {})
            remove_files(store, "plan.json")
            with effect("commit", "features"):
                pass
        write_bytes(store, "later", b"x")
        assert seen == [
            ("put", "one/plan.json", "before", False),
            ("put", "one/plan.json", "after", True),
            ("delete", "one/plan.json", "before", True),
            ("delete", "one/plan.json", "after", False),
            ("commit", "features", "before", False),
            ("commit", "features", "after", False),
        ]

    def test_each_of_many_deletions_is_announced(self, settings):
        store, seen = lake_store(settings, "runs/one"), []
        for name in "ab":
            write_bytes(store, name, b"x")
        with effects_watched(lambda kind, path, moment: seen.append((moment, path[-1]))):
            remove_files(store, *"ab")
        together = settings.lake_kind == "s3"  # by one request
        assert [name for moment, name in seen if moment == "before"] == ["a", "b"]
        assert [moment for moment, _ in seen] == (
            ["before"] * 2 + ["after"] * 2 if together else ["before", "after"] * 2
        )

    @pytest.mark.parametrize("moment", ["before", "after"])
    @pytest.mark.parametrize("failing", [1, 2, 3])
    def test_the_nth_effect_can_be_made_to_fail_or_to_lose_its_answer(self, settings, failing, moment):
        store, calls = lake_store(settings, "runs"), count(1)

        def fail(kind, path, now):
            if now == moment and next(calls) == failing:
                raise ConnectionError(f"{kind} {path}")

        with pytest.raises(ConnectionError, match=r"runs/"), effects_watched(fail):
            write_bytes(store, "a", b"x")
            write_bytes(store, "b", b"x")
            remove_files(store, "a")
        done = failing if moment == "after" else failing - 1
        assert [exists(store, path) for path in "ab"] == [0 < done < 3, done > 1]

    def test_an_effect_that_failed_by_itself_is_not_told_as_done(self, settings):
        store, seen = lake_store(settings, "runs"), []
        write_bytes(store, "a", b"x")
        with pytest.raises(AlreadyExistsError), effects_watched(lambda kind, path, moment: seen.append(moment)):
            write_bytes(store, "a", b"y", create=True)
        assert seen == ["before"]

    def test_an_error_of_obstore_from_a_watcher_is_explained_like_a_real_one(self, make_settings):
        def unreachable(*_):
            raise GenericError("Generic S3 error: Error performing PUT http://x in 1ms - HTTP error: connection reset")

        store = lake_store(make_settings("s3"), "runs")
        message = r"does not answer.*\(HTTP error: connection reset\)"
        with pytest.raises(TransientError, match=message), effects_watched(unreachable):
            write_bytes(store, "a", b"x")

    def test_no_other_module_writes_or_deletes_by_itself(self):
        root = Path(stores.__file__).parents[1]
        files = [file for folder in ("fruits", "local", "spark_jobs") for file in (root / folder).rglob("*.py")]
        assert len(files) > 60
        writing = {
            str(file.relative_to(root)): names for file in files if (names := sorted(effects_in(file.read_text())))
        }
        assert writing == {
            "fruits/lake/branches.py": ["commit_table"],  # through `open_catalog`
            "fruits/lake/catalog.py": ["commit_table", "load_catalog"],  # `open_catalog` makes each commit an effect
            "fruits/lake/metadata.py": ["load_catalog"],  # of AWS's own tables, which are only read
            "fruits/stores.py": ["delete", "put"],
            "local/stack.py": ["create_bucket"],  # as the owner of the server
            "local/ui.py": ["upload_file"],  # as a person who uploads a photo: `make put`
        }

    @pytest.mark.parametrize(
        ("source", "effects"),
        [
            ("import obstore\nobstore.put(store, 'a', b'')", {"put"}),
            ("import obstore as o\no.rename_async(store, 'a', 'b')", {"rename_async"}),
            ("from obstore import delete as d", {"delete"}),
            ("lake_store(settings).put('a', b'')", {"put"}),
            ("self.store.delete('a')", {"delete"}),
            ("client.delete_objects(Bucket='a')", {"delete_objects"}),
            ("lake.catalog.commit_table(table, (), ())", {"commit_table"}),
            ("load_catalog('fruits')", {"load_catalog"}),
            ("queue.put(1); transaction.delete(rows); obstore.get(store, 'a'); settings.copy()", set()),
        ],
    )
    def test_effects_are_found_in_source_code(self, source, effects):
        assert effects_in(source) == effects


WRITES = {name + suffix for name in ("put", "delete", "copy", "rename") for suffix in ("", "_async")}
BOTO3_WRITES = {
    *("put_object", "delete_object", "delete_objects", "copy_object", "upload_file", "upload_fileobj", "upload_part"),
    *("create_multipart_upload", "complete_multipart_upload", "create_bucket", "delete_bucket"),
}


CATALOG = {"commit_table", "load_catalog"}
"""PyIceberg's commit to a catalog, and the way to a catalog whose commits are no effects."""


def effects_in(source: str) -> set[str]:
    """The writing functions of obstore, of its stores, of boto3's S3 client and of a catalog that a module uses."""
    tree = ast.parse(source)
    modules = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "obstore"
    }
    effects: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "obstore":
            effects |= WRITES & {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).partition("(")[0].rpartition(".")[2]
            if node.attr in WRITES and (owner in modules or owner.lower().endswith("store")):
                effects.add(node.attr)
            effects |= (BOTO3_WRITES | CATALOG) & {node.attr}
        elif isinstance(node, ast.Name):
            effects |= CATALOG & {node.id}
    return effects


@pytest.fixture
def _fresh_credentials():
    stores._credentials.cache_clear()
    yield
    stores._credentials.cache_clear()


def refusal_by_obstore(settings) -> str:
    with pytest.raises(FruitsError) as caught:
        read_bytes(photo_store(settings), "x")
    return str(caught.value)


def refusal_by_listing_with_obstore(settings) -> str:
    with pytest.raises(FruitsError) as caught:
        list(list_files(photo_store(settings)))
    return str(caught.value)


def refusal_by_boto3(settings) -> str:
    with pytest.raises(FruitsError) as caught:
        list(list_objects(settings, ""))
    return str(caught.value)


REFUSALS = pytest.mark.parametrize("refusal", [refusal_by_obstore, refusal_by_listing_with_obstore, refusal_by_boto3])


@REFUSALS
@pytest.mark.usefixtures("_fresh_credentials")
class TestWhatIsWrongWithS3:
    def test_a_missing_bucket(self, make_settings, refusal):
        settings = make_settings(bucket="no-such-bucket")
        message = refusal(settings)
        assert message.startswith(f"S3 server {settings.s3_endpoint}: bucket 'no-such-bucket' does not exist there;")
        assert "FRUITS_BUCKET" in message

    def test_a_wrong_secret(self, make_settings, refusal, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert "refuses the secret key; check AWS_SECRET_ACCESS_KEY" in refusal(make_settings())

    def test_an_unknown_access_key(self, make_settings, refusal, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        assert "does not know the access key; check AWS_ACCESS_KEY_ID" in refusal(make_settings())

    def test_no_credentials_at_all(self, make_settings, refusal, monkeypatch, tmp_path):
        for name in [name for name in os.environ if name.startswith("AWS_") and "METADATA" not in name]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert "there are no AWS credentials; set AWS_ACCESS_KEY_ID" in refusal(make_settings())

    def test_a_profile_that_does_not_exist(self, make_settings, refusal, monkeypatch):
        monkeypatch.setenv("AWS_PROFILE", "orchard")
        with pytest.raises((FruitsError, BotoCoreError), match=r"profile \(orchard\) could not be found"):
            list_client(make_settings()) if refusal is refusal_by_boto3 else photo_store(make_settings())

    def test_a_server_that_is_down(self, make_settings, refusal):
        settings = make_settings(s3_endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
        message = refusal(settings)
        assert message.startswith(
            f"S3 server {settings.s3_endpoint}: it does not answer; check FRUITS_S3_ENDPOINT and the network ("
        )


def test_a_lake_where_nothing_can_be_removed_keeps_one_object_of_each_caller(stack, make_settings, monkeypatch):
    def denied(*_, **__):
        raise GenericError("DeleteObjects request failed for key x: Access Denied (code: AccessDenied)")

    settings = make_settings("s3")
    monkeypatch.setattr(obstore, "delete", denied)
    for caller in ("prepare", "doctor", "prepare"):
        with pytest.raises(FruitsError, match="denies s3:DeleteObject"):
            check_lake(settings, caller)
    bucket, _, prefix = settings.lake.removeprefix("s3://").partition("/")
    kept = [item["Key"] for item in stack.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert kept == [f"{prefix}/checks/doctor", f"{prefix}/checks/prepare"]


def test_two_that_check_a_lake_at_once_do_not_disturb_each_other(make_settings, monkeypatch):
    def quicker(store, name, data):
        write_bytes(store, name, data)
        remove_files(store, name)

    monkeypatch.setattr(stores, "write_bytes", quicker)
    check_lake(make_settings("s3"), "prepare")


def test_the_checks_of_bucket_and_lake_find_nothing_where_all_is_well(stack, make_settings, bucket):
    settings = make_settings("s3")
    stack.client().put_object(Bucket=bucket, Key="Kiwi/1.jpg", Body=b"photo")
    check_photos(settings, ["Kiwi/1.jpg"])
    check_photos(settings, ["Kiwi/gone.jpg"])
    check_photos(settings, [])
    check_lake(settings, "prepare")
    name = settings.lake.split("/")[2]
    assert stack.client().list_objects_v2(Bucket=name)["KeyCount"] == 0, "nothing is left behind"
