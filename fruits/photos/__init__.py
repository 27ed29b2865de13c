"""From an object in the bucket to a feature."""
