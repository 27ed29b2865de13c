"""Fruits: always-current, always-checked tables of image features and embeddings from a bucket of fruit photos."""

__version__ = "0.2.0"
