"""Fruits: always-current, always-checked tables of image features and embeddings from a bucket of fruit photos."""

import logging

from fruits.text import InertArguments

__version__ = "0.2.0"

logging.getLogger("fruits").addFilter(InertArguments())
