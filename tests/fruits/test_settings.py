import re

import pytest
from pydantic import SecretStr

from fruits.analysis.gates import _LARGE_SAMPLE
from fruits.errors import ExitCode, FruitsError
from fruits.settings import DagSettings, Settings, holds_secret, public_uri, queue_region

PASSWORD = "s3cret-pass"
CATALOG = f"postgresql://fruits:{PASSWORD}@db.example:5432/fruits"
REQUIRED = {"lake": "s3://lake/warehouse", "catalog_uri": CATALOG}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch, tmp_path):
    for name in [*Settings.model_fields]:
        monkeypatch.delenv(f"FRUITS_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(**values: object) -> str:
    with pytest.raises(FruitsError) as caught:
        Settings.load(**{**REQUIRED, **values})
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    return str(caught.value)


def test_only_the_lake_and_its_catalog_have_to_be_set():
    with pytest.raises(FruitsError) as caught:
        Settings.load()
    named = re.findall(r"^  (FRUITS_\w+) is not set\.", str(caught.value), re.MULTILINE)
    assert named == ["FRUITS_LAKE", "FRUITS_CATALOG_URI"]
    assert Settings.load(**REQUIRED).warehouse == "s3://lake/warehouse/tables"


def test_every_setting_is_read_from_its_variable(monkeypatch):
    for name, value in REQUIRED.items():
        monkeypatch.setenv(f"FRUITS_{name.upper()}", value)
    monkeypatch.setenv("FRUITS_BUCKET", "orchard")
    monkeypatch.setenv("FRUITS_GETS_IN_FLIGHT", "3")
    settings = Settings.load()
    assert (settings.bucket, settings.gets_in_flight, settings.lake) == ("orchard", 3, REQUIRED["lake"])


def test_an_override_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("FRUITS_BUCKET", "orchard")
    assert Settings.load(**REQUIRED, bucket="garden").bucket == "garden"


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    monkeypatch.setenv("FRUITS_BUCKET", "")
    monkeypatch.setenv("FRUITS_LAKE", "")
    assert "FRUITS_LAKE is not set" in refusal_without("lake")
    assert Settings.load(**REQUIRED).bucket == "fruits"


def refusal_without(name: str) -> str:
    with pytest.raises(FruitsError) as caught:
        Settings.load(**{key: value for key, value in REQUIRED.items() if key != name})
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bucket", "ab", "at least 3"),
        ("key_pattern", "(?P<label>", "regular expression"),
        ("key_pattern", "(?P<kind>[^/]+)/.*", "(?P<label>...)"),
        ("holdout_share", "1", "less than 1"),
        ("holdout_share", "-0.1", "greater than or equal to 0"),
        ("s3_endpoint", "localhost:8333", "starts with http:// or https://"),
        ("lake", "/folder", "file:///folder or s3://bucket/prefix"),
        ("lake", "s3:///prefix", "file:///folder or s3://bucket/prefix"),
        ("lake", "https://host/folder", "file:///folder or s3://bucket/prefix"),
        ("lake", "file://folder", "file:///folder"),
        ("lake", "file:///", "file:///folder"),
        ("namespace", "Fruits!", "pattern"),
        ("spark_driver_memory", "lots", "pattern"),
        ("engine", "yarn", "'spark-submit' or 'emr-serverless'"),
        ("emr_application", "My app", "pattern"),
        ("emr_role", "fruits-jobs", "pattern"),
        ("emr_code", "/opt/fruits", "expected s3://bucket/prefix"),
        ("emr_logs", "s3:///logs", "expected s3://bucket/prefix"),
        ("max_photo_bytes", "0", "greater than 0"),
        ("max_photo_pixels", "many", "integer"),
        ("gets_in_flight", "0", "greater than or equal to 1"),
        ("gets_in_flight", "1000", "less than or equal to 256"),
        ("photos_per_task", "0", "greater than or equal to 1"),
        ("bytes_per_task", "1", "greater than or equal to 1000000"),
        ("chunk_photos", "1", "greater than or equal to 100"),
        ("chunk_bytes", "1", "greater than or equal to 1000000"),
        ("max_components", "0", "greater than or equal to 1"),
        ("refit_drift", "0", "greater than 0"),
        ("refit_drift_rows", "1", "greater than or equal to 2"),
        ("refit_growth", "1", "greater than 1"),
        ("min_explained_variance", "1.1", "less than or equal to 1"),
        ("max_quarantined_share", "-1", "greater than or equal to 0"),
        ("min_probe_ratio", "-1", "greater than or equal to 0"),
        ("probe_rows", "10", "greater than or equal to 100"),
    ],
)
def test_a_wrong_value_names_its_variable_and_says_what_was_found_expected_and_meant(name, value, expected):
    message = refusal(**{name: value})
    (line,) = [line for line in message.splitlines() if line.startswith("  ")]
    assert line.startswith(f"  FRUITS_{name.upper()} is {value!r}: ")
    assert expected in line
    assert line.endswith(Settings.model_fields[name].description)


def test_all_problems_are_reported_at_once():
    message = refusal(bucket="ab", lake="nowhere", gets_in_flight="0")
    assert re.findall(r"^  FRUITS_(\w+)", message, re.MULTILINE) == ["BUCKET", "LAKE", "GETS_IN_FLIGHT"]


def test_the_catalogs_password_is_never_shown():
    settings = Settings.load(**REQUIRED)
    messages = [
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        refusal(bucket="ab"),
        refusal(catalog_uri=[PASSWORD]),
        refusal_without("lake"),
    ]
    assert [PASSWORD in message for message in messages] == [False] * len(messages)
    assert settings.catalog_uri == SecretStr(CATALOG)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0.95", 0.95), ("128", 128), ("1", 1), (1.0, 1), ("128.0", 128), (0.5, 0.5), (64, 64)],
)
def test_n_components_is_a_count_or_a_share(value, expected):
    found = Settings.load(**REQUIRED, n_components=value).n_components
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize("value", ["0", "-3", "0.0", "1.5", "-0.5", "inf", "nan", "all", 0, 2.5])
def test_n_components_that_are_neither_count_nor_share_are_refused(value):
    message = refusal(n_components=value)
    assert message.count("FRUITS_N_COMPONENTS") == 1
    assert f"is {value!r}: expected a count (1, 2, ...) or a share of variance between 0 and 1" in message


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("Apple,Kiwi", ("Apple", "Kiwi")),
        (" Apple Red , Kiwi ,, ", ("Apple Red", "Kiwi")),
        ("Fig", ("Fig",)),
        (" , ", ()),
    ],
)
def test_labels_are_separated_by_commas(monkeypatch, value, labels):
    monkeypatch.setenv("FRUITS_LABELS", value)
    assert Settings.load(**REQUIRED).labels == labels


@pytest.mark.parametrize(
    ("lake", "kind", "warehouse"),
    [
        ("file:///data/lake/", "file", "file:///data/lake/tables"),
        ("s3://lake", "s3", "s3://lake/tables"),
        ("s3://lake/a/b/", "s3", "s3://lake/a/b/tables"),
    ],
)
def test_the_lake_may_be_a_folder_or_a_bucket(lake, kind, warehouse):
    settings = Settings.load(**{**REQUIRED, "lake": lake})
    assert (settings.lake_kind, settings.warehouse) == (kind, warehouse)


@pytest.mark.parametrize(
    ("bucket", "prefix", "lake", "named"),
    [
        ("fruits", "", "s3://fruits/lake", "FRUITS_LAKE: s3://fruits/lake is among the photos, s3://fruits/,"),
        ("fruits", "", "s3://fruits", "FRUITS_LAKE: s3://fruits is among the photos"),
        ("fruits", "photos/", "s3://fruits/photos/lake", "among the photos, s3://fruits/photos/"),
        ("fruits", "photos", "s3://fruits/photos-lake", "among the photos, s3://fruits/photos,"),
        ("fruits", "photos/", "s3://fruits/photos", "among the photos"),
        ("fruits", "photos/", "s3://fruits", "FRUITS_PREFIX: the photos, s3://fruits/photos/, are inside the lake"),
        ("fruits", "lake/photos/", "s3://fruits/lake", "are inside the lake s3://fruits/lake"),
    ],
)
def test_a_lake_among_the_photos_or_around_them_is_refused(bucket, prefix, lake, named):
    message = refusal(bucket=bucket, prefix=prefix, lake=lake)
    assert named in message
    assert "set FRUITS_LAKE to another bucket" in message


@pytest.mark.parametrize(
    ("bucket", "prefix", "lake"),
    [
        ("fruits", "photos/", "s3://fruits/lake"),
        ("fruits", "photos/", "s3://fruits/photos-lake"),
        ("fruits", "lake-photos/", "s3://fruits/lake"),
        ("fruits", "", "s3://fruits-lake"),
        ("fruits", "", "file:///fruits"),
    ],
)
def test_a_lake_beside_the_photos_is_fine(bucket, prefix, lake):
    assert Settings.load(**{**REQUIRED, "bucket": bucket, "prefix": prefix, "lake": lake}).lake == lake


@pytest.mark.parametrize("setting", ["catalog_name", "namespace"])
@pytest.mark.parametrize("name", ["f; DROP TABLE x", "a.b", "fruits-prod", "a`b", "a'b", "", "1a", "früchte", "a\n"])
def test_a_name_that_reaches_sql_is_a_plain_identifier(setting, name):
    assert f"FRUITS_{setting.upper()} is {name!r}" in refusal(**{setting: name})
    assert getattr(Settings.load(**REQUIRED, **{setting: "fruits_2"}), setting) == "fruits_2"


EMR = {
    "engine": "emr-serverless",
    "emr_application": "00f1",
    "emr_role": "arn:aws:iam::123456789012:role/fruits-jobs",
    "emr_code": "s3://code/fruits/",
}


@pytest.mark.parametrize(("uri", "account"), [("glue://", None), ("glue://123456789012", "123456789012")])
def test_the_catalog_may_be_glue(uri, account):
    settings = Settings.load(**{**REQUIRED, "catalog_uri": uri})
    assert (settings.catalog_kind, settings.glue_account) == ("glue", account)
    assert Settings.load(**REQUIRED).catalog_kind == "postgresql"
    assert Settings.load(**REQUIRED).glue_account is None


@pytest.mark.parametrize("uri", ["glue://fruits", "glue://12345", "glue:", "glue:///", "glue://123456789012/fruits"])
def test_what_only_looks_like_glue_is_refused(uri):
    assert "glue:// or glue://<account of 12 digits>" in refusal(catalog_uri=uri)


def test_emr_serverless_needs_all_of_its_settings_and_a_lake_that_it_can_reach():
    message = refusal(engine="emr-serverless", emr_code="s3://code")
    assert "  FRUITS_EMR_APPLICATION, FRUITS_EMR_ROLE: not set, and FRUITS_ENGINE=emr-serverless needs" in message
    message = refusal(**EMR, lake="file:///lake")
    assert "\n  FRUITS_LAKE: expected s3://bucket/prefix" in message
    assert "\n  FRUITS_CATALOG_URI: expected glue://" in message
    assert PASSWORD not in message
    settings = Settings.load(**{**REQUIRED, **EMR, "catalog_uri": "glue://"})
    assert (settings.engine, settings.emr_code) == ("emr-serverless", "s3://code/fruits")


def test_submit_settings_need_no_variable_at_all(monkeypatch, tmp_path):
    """A DAG file reads them when it is parsed, wherever that is."""
    assert DagSettings().jobs_env.name == "jobs"
    monkeypatch.setenv("FRUITS_JOBS_ENV", str(tmp_path))
    assert DagSettings().jobs_env == tmp_path


def test_settings_do_not_change():
    settings = Settings.load(**REQUIRED)
    with pytest.raises(ValueError, match="frozen"):
        settings.bucket = "another"


def test_every_setting_says_what_it_is_for():
    undescribed = [name for name, field in Settings.model_fields.items() if not (field.description or "").endswith(".")]
    assert undescribed == []


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-3.amazonaws.com/123456789012/fruits", "eu-west-3"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/fruits", "cn-north-1"),
        ("https://vpce-1a.sqs.eu-west-1.vpce.amazonaws.com/123456789012/fruits", None),
        ("http://127.0.0.1:1/123456789012/fruits", None),
        ("nonsense", None),
    ],
)
def test_a_queue_of_aws_says_its_region(url, region):
    assert queue_region(url) == region


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://fruits:{}/x@db.example/fruits",
        "postgresql://fruits:{}#x@db.example/fruits",
        "postgresql://fruits:[{}@db.example/fruits",
        "postgresql://fruits:\u2100{}@db.example/fruits",
        "postgresql://fruits@db.example:{}/fruits",
        "postgresql://db.example/fruits?user=fruits&password={}",
        "postgresql://db.example/fruits?p%61ssword={}",
        "mysql://fruits:{}@db.example/fruits",
    ],
)
def test_a_password_in_a_wrong_place_is_refused_and_not_repeated(uri):
    said = refusal(catalog_uri=uri.format(PASSWORD))
    assert "percent-encoded" in said
    assert PASSWORD not in said


def test_a_wrong_address_is_shown_without_its_secrets():
    said = refusal(lake=f"https://me:{PASSWORD}@host/lake?signature={PASSWORD}", weights_from=f"https://h/?{PASSWORD}")
    assert "FRUITS_LAKE is 'https://host/lake'" in said
    assert "FRUITS_WEIGHTS_FROM expected absolute folders" in said
    assert PASSWORD not in said


@pytest.mark.parametrize(
    ("uri", "shown", "secret"),
    [
        ("https://host/a.h5?X-Amz-Signature=1", "https://host/a.h5", True),
        ("https://me:word@host/a.h5", "https://host/a.h5", True),
        ("https://host?signature=1", "https://host", True),
        ("https://host/a.h5#sha256=0", "https://host/a.h5", False),
        ("https://[::1/a.h5?signature=1", "https://[::1/a.h5", True),
        ("s3://bucket/a@b/c.h5", "s3://bucket/a@b/c.h5", False),
        ("/srv/what?.h5", "/srv/what?.h5", False),
        ("imagenet", "imagenet", False),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(uri, shown, secret):
    assert public_uri(uri) == shown
    assert holds_secret(uri) is secret


@pytest.mark.parametrize(
    "places", ["weights", "http://host", "https://", "https://me:word@host/", "https://h/?a=1", "~"]
)
def test_places_of_weights_are_folders_and_addresses(places):
    assert "FRUITS_WEIGHTS_FROM expected absolute folders" in refusal(weights_from=f"/srv/weights, {places}")


def test_places_of_weights_are_separated_by_commas():
    places = "/srv/weights, s3://bucket/weights,https://host/"
    given = Settings.load(**REQUIRED, weights_from=places)
    assert given.weights_from == ("/srv/weights", "s3://bucket/weights", "https://host/")


def test_sweeps_divide_a_day_and_no_alert_comes_before_the_next_one_is_due():
    lake = {"lake": "file:///lake", "catalog_uri": "sqlite:////lake/catalog.db"}
    assert [Settings.load(**lake, sweep_hours=hours).stale_hours for hours in (1, 4, 12)] == [6, 6, 13]
    with pytest.raises(FruitsError, match=r"FRUITS_SWEEP_HOURS is 5: expected hours that divide a day"):
        Settings.load(**lake, sweep_hours=5)


@pytest.mark.parametrize("name", ["max_quarantined_share", "min_probe_ratio"])
def test_the_reference_says_what_a_small_sample_is(name):
    assert f"fewer than {_LARGE_SAMPLE:,}" in str(Settings.model_fields[name].description)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"listing": "s3"}, r"FRUITS_LISTING is 's3': .*'list', 'inventory' or 'metadata'"),
        ({"listing": "inventory"}, "FRUITS_INVENTORY is not set, and FRUITS_LISTING=inventory needs it"),
        ({"listing": "metadata"}, "FRUITS_METADATA_TABLE is not set, and FRUITS_LISTING=metadata needs it"),
        ({"inventory": "reports/daily"}, "FRUITS_INVENTORY is 'reports/daily': expected s3://bucket/prefix"),
        ({"inventory": "s3://fruits/reports/daily"}, "FRUITS_INVENTORY: s3://fruits/reports/daily is among the photos"),
        ({"metadata_table": "b_fruits.inventory"}, "FRUITS_METADATA_TABLE is 'b_fruits.inventory': "),
    ],
)
def test_a_source_of_sweeps_has_to_be_complete(given, message):
    with pytest.raises(FruitsError, match=message):
        Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db", **given)


def test_reports_may_lie_beside_the_photos_of_a_prefix():
    settings = Settings.load(
        lake="file:///lake", catalog_uri="sqlite:////c.db", prefix="photos/", inventory="s3://fruits/reports/daily/"
    )
    assert settings.inventory == "s3://fruits/reports/daily"
