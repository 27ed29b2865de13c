"""What a command prints, whatever somebody called their photos."""

import json

import pytest

from fruits.cli.output import answer, answer_error, fields, table
from fruits.errors import FruitsError
from tests.hostile import ACTING, HOSTILE_KEYS

pytestmark = pytest.mark.jobs
KEYS = pytest.mark.parametrize("key", HOSTILE_KEYS.values(), ids=HOSTILE_KEYS)


@KEYS
def test_no_key_acts_on_a_terminal(key, capsys):
    def rendered(document):
        return [table(["key"], [(document["key"],)]), fields([("key", document["key"])]), document["key"]]

    answer({"key": key}, rendered, as_json=False)
    out = capsys.readouterr().out
    assert not ACTING & set(out)
    if key.isprintable():
        assert out.count(key) == 3, "it is shown as it is"


@KEYS
def test_no_key_in_json_acts_on_a_terminal_and_each_comes_back_whole(key, capsys):
    answer({"keys": {key: [key]}}, lambda _: [], as_json=True)
    out = capsys.readouterr().out
    assert not ACTING & set(out)
    assert json.loads(out) == {"keys": {key: [key]}}
    answer_error(FruitsError(key))
    assert json.loads(capsys.readouterr().out)["error"]["message"] == key
