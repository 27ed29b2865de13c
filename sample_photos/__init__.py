"""Fruit photos drawn by code, for trials, tests and benchmarks: ``python -m sample_photos``.

A table of recipes (``FRUITS``) says what each kind looks like. A small renderer shades inflated outlines and lays them,
in varied pose and light, on varied backgrounds. Every photo is a pure function of seed, label, split and number.
"""

from sample_photos.files import BROKEN, draw, draw_broken, photo_key
from sample_photos.folder import contact_sheet, generate
from sample_photos.recipes import FRUITS, LABELS

__all__ = ["BROKEN", "FRUITS", "LABELS", "contact_sheet", "draw", "draw_broken", "generate", "photo_key"]
