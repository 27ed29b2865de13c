"""Names that come from anybody, such as object keys, as text that acts on nothing."""

import logging
import re


def readable(name: str) -> str:
    """``name`` with control characters, odd spaces and bytes that are no UTF-8 written as escapes."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def inert(text: str) -> str:
    """``text`` with all but line breaks made ``readable``: no colours, no other direction of writing."""
    return "\n".join(map(readable, text.split("\n")))


def _argument(value: object) -> object:
    """An argument of a log record. A further line is indented, so that no key can look like a record of its own."""
    if isinstance(value, int | float):
        return value
    return re.sub(r"\n(?! )", "\n  ", inert(str(value)))


class InertArguments(logging.Filter):
    """Keeps object keys in log records from acting on the terminal that shows the log, and from forging records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record's arguments; every record passes."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_argument, record.args))
        return True
