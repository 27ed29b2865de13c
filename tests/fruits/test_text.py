"""Names that anybody chose act neither on a terminal nor on a log."""

import logging

import pytest

from fruits.text import inert, readable
from tests.hostile import ACTING, HOSTILE_KEYS


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Pomme d'été 🍎.jpg", "Pomme d'été 🍎.jpg"),
        ("3.15.10\u202fPM.png", r"3.15.10\u202fPM.png"),
        ("\x1b[31mred.jpg", r"\x1b[31mred.jpg"),
        ("caf\udce9.jpg", r"caf\udce9.jpg"),
    ],
)
def test_what_a_terminal_does_not_show_is_written_out(name, shown):
    assert readable(name) == shown


def test_line_breaks_of_a_text_stay():
    assert inert("mend\nthis\x1b[0m") == "mend\nthis\\x1b[0m"


@pytest.mark.parametrize("key", HOSTILE_KEYS.values(), ids=HOSTILE_KEYS)
@pytest.mark.parametrize("kind", [str, ValueError])
def test_no_key_in_a_log_acts_or_looks_like_a_record(key, kind, caplog):
    caplog.set_level(logging.INFO, "fruits")
    logging.getLogger("fruits").info("would create %s, %d of %.1f", kind(key), 1, 2.0)
    (record,) = caplog.records
    message = record.getMessage()
    assert not ACTING & set(message)
    assert message.startswith("would create ")
    assert message.endswith(", 1 of 2.0")
    assert all(line.startswith("  ") for line in message.split("\n")[1:])
