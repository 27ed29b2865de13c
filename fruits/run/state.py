"""A run's identity in the lake."""

import hashlib
import re


def run_key(run_id: str) -> str:
    """``run_id`` as it can be used in branch names and paths, still unique: ``manual_2026_11_22t09_30_00_1f3a``."""
    plain = re.sub(r"[^a-z0-9]+", "_", run_id.lower()).strip("_")
    return f"{plain[:60]}_{hashlib.sha256(run_id.encode()).hexdigest()[:6]}"
