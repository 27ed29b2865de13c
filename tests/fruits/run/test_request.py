from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from fruits.errors import ExitCode, FruitsError
from fruits.run.request import RunRequest, resolve_request
from fruits.settings import Settings

LAKE = {"lake": "file:///lake", "catalog_uri": "sqlite:////lake/catalog.db"}
SETTINGS = Settings.load(**LAKE, prefix="photos/", backbone="MobileNetV2", weights="random", n_components=64)
START = datetime(2026, 11, 20, tzinfo=UTC)
INTERVAL = (START, START + timedelta(days=1))


@pytest.mark.parametrize(
    ("params", "run_type", "data_interval", "expected"),
    [
        ({}, "manual", None, {}),
        ({}, "asset_triggered", None, {}),
        ({}, "scheduled", INTERVAL, {}),
        ({}, "manual", INTERVAL, {}),
        ({}, "backfill", INTERVAL, {"mode": "interval", "interval": INTERVAL}),
        ({"mode": "auto"}, "backfill", INTERVAL, {"mode": "interval", "interval": INTERVAL}),
        ({"mode": "reconcile"}, "backfill", INTERVAL, {"mode": "reconcile", "interval": None}),
        ({"mode": "rebuild"}, "backfill", INTERVAL, {"mode": "rebuild", "interval": None}),
        ({"mode": "interval"}, "scheduled", INTERVAL, {"mode": "interval", "interval": INTERVAL}),
        ({"prefix": "photos/new/"}, "manual", None, {"prefix": "photos/new/"}),
        ({"prefix": ""}, "manual", None, {}),
        ({"prefix": None, "keys": None, "limit": None, "n_components": None}, "manual", None, {}),
        ({"keys": []}, "manual", None, {}),
        ({"keys": [" photos/b ", "photos/a", "", "photos/a"]}, "manual", None, {"keys": ("photos/a", "photos/b")}),
        ({"backbone": "MobileNetV2"}, "manual", None, {"backbone": "MobileNetV2"}),
        ({"backbone": "ResNet50"}, "manual", None, {"backbone": "ResNet50", "weights": None}),
        (
            {"backbone": "ResNet50", "weights": "imagenet"},
            "manual",
            None,
            {"backbone": "ResNet50", "weights": "imagenet"},
        ),
        ({"precision": "int8"}, "manual", None, {"precision": "int8"}),
        ({"precision": ""}, "manual", None, {}),
        ({"n_components": 0.9}, "manual", None, {"n_components": 0.9}),
        ({"n_components": 32.0}, "manual", None, {"n_components": 32}),
        ({"n_components": "0.5"}, "manual", None, {"n_components": 0.5}),
        ({"refit": "always"}, "manual", None, {"refit": "always"}),
        ({"limit": 5}, "manual", None, {"limit": 5}),
        ({"limit": 5.0}, "manual", None, {"limit": 5}),
        ({"limit": "", "backbone": "", "n_components": ""}, "manual", None, {}),
        ({"keys": "photos/a b"}, "manual", None, {"keys": ("photos/a b",)}),
        ({"settle_seconds": 0, "sensor_timeout": 60}, "manual", None, {}),
        ({"retry_quarantined": True, "dry_run": True}, "manual", None, {"retry_quarantined": True, "dry_run": True}),
    ],
)
def test_params_come_before_the_run_type_and_that_before_the_interval(params, run_type, data_interval, expected):
    default = RunRequest(prefix="photos/", n_components=64)
    found = resolve_request(params, SETTINGS, run_type=run_type, data_interval=data_interval)
    assert found == default.model_copy(update=expected)


@pytest.mark.parametrize(
    ("params", "named", "expected"),
    [
        ({"mode": "full"}, "mode 'full'", "auto, reconcile, interval or rebuild"),
        ({"mode": "interval"}, "mode 'interval'", "backfill"),
        ({"prefix": "/photos/"}, "prefix '/photos/'", "without a leading slash"),
        ({"prefix": "s3://fruits/photos/"}, "prefix 's3://fruits/photos/'", "without a leading slash"),
        ({"prefix": "private/"}, "prefix 'private/'", "outside FRUITS_PREFIX, 'photos/'"),
        ({"prefix": "phot"}, "prefix 'phot'", "outside FRUITS_PREFIX, 'photos/'"),
        ({"keys": ["photos/a", "other/b"]}, "'other/b'", "does not start with the prefix 'photos/'"),
        ({"n_components": 0}, "n_components 0", "a count (1, 2, ...) or a share"),
        ({"n_components": 1.5}, "n_components 1.5", "a count (1, 2, ...) or a share"),
        ({"n_components": -2}, "n_components -2", "a count (1, 2, ...) or a share"),
        ({"n_components": float("inf")}, "n_components inf", "a count (1, 2, ...) or a share"),
        ({"n_components": "most"}, "n_components 'most'", "a count (1, 2, ...) or a share"),
        ({"n_components": True}, "n_components True", "a count (1, 2, ...) or a share"),
        ({"n_components": [2]}, "n_components [2]", "a count (1, 2, ...) or a share"),
        ({"refit": "sometimes"}, "refit 'sometimes'", "auto, always or never"),
        ({"limit": 0}, "limit 0", "at least 1"),
        ({"limit": -1}, "limit -1", "at least 1"),
        ({"limit": True}, "limit True", "at least 1"),
        ({"limit": "5"}, "limit '5'", "at least 1"),
        ({"prefix": 7}, "prefix 7", "the start of object keys"),
        ({"keys": 7}, "keys 7", "a list of object keys"),
        ({"keys": ["photos/a", 7]}, "keys ['photos/a', 7]", "a list of object keys"),
        ({"keys": {"photos/a": 1}}, "keys {'photos/a': 1}", "a list of object keys"),
        ({"backbone": ["MobileNetV2"]}, "backbone ['MobileNetV2']", "the name of a backbone"),
        ({"weights": 1}, "weights 1", "a path or a URI"),
        ({"weights": "https://host/a.h5?sig=1"}, "weights 'https://host/a.h5'", "without a query"),
        ({"weights": "https://me:word@host/a.h5"}, "weights 'https://host/a.h5'", "set FRUITS_WEIGHTS instead"),
        ({"precision": "fp16"}, "precision 'fp16'", "fp32 or int8"),
        ({"dry_run": "false"}, "dry_run 'false'", "true or false"),
        ({"dry_run": 1}, "dry_run 1", "true or false"),
        ({"dry_run": None}, "dry_run None", "true or false"),
        ({"retry_quarantined": "yes"}, "retry_quarantined 'yes'", "true or false"),
        ({"retry_quarantined": ""}, "retry_quarantined ''", "true or false"),
        ({"settle_seconds": "soon"}, "settle_seconds 'soon'", "seconds"),
        ({"dryrun": True}, "param 'dryrun'", "did you mean 'dry_run'?"),
        ({"limits": 5}, "param 'limits'", "did you mean 'limit'?"),
        ({"Limit": 5}, "param 'Limit'", "did you mean 'limit'?"),
        ({"colour": "red"}, "param 'colour'", "the params are prefix, keys, mode,"),
        (["dry_run"], "params ['dry_run']", "an object of names and values"),
        ({"limit": 2.5}, "limit 2.5", "at least 1"),
        ({"limit": "ten"}, "limit 'ten'", "at least 1"),
        ({"mode": "rebuild", "limit": 5}, "mode 'rebuild'", "leave `limit` empty"),
    ],
)
def test_a_bad_param_is_named_with_what_was_expected(params, named, expected):
    with pytest.raises(FruitsError) as caught:
        resolve_request(params, SETTINGS)
    assert named in str(caught.value)
    assert expected in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize(
    "request_",
    [
        RunRequest(prefix=""),
        RunRequest(
            prefix="a/",
            mode="interval",
            keys=("a/b",),
            interval=INTERVAL,
            backbone="x",
            weights="y",
            precision="int8",
            n_components=7,
            refit="never",
            limit=3,
            retry_quarantined=True,
            dry_run=True,
        ),
    ],
)
def test_a_request_survives_its_document(request_):
    again = RunRequest.model_validate_json(request_.model_dump_json())
    assert again == request_
    assert type(again.n_components) is type(request_.n_components)


def test_a_request_does_not_change_and_has_no_unknown_fields():
    with pytest.raises(ValidationError):
        RunRequest(prefix="", dryrun=True)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        RunRequest(prefix="").limit = 5
