"""One run, typed: what it was asked, what it plans, what its tasks record."""
