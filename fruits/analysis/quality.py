"""What photos tell of a classifier, as run documents and gates take it; without numpy, which they do not need."""

from dataclasses import dataclass
from typing import Literal

CalibratedOn = Literal["held-out photos", "cross-fitted photos", "nothing"]
"""The photos that a classifier was calibrated on; cross-fitted ones were scored by a fit without them."""


@dataclass(frozen=True)
class Quality:
    """What photos tell of a calibrated classifier that knew them neither at its fit nor at its calibration.

    Attributes:
        n: The photos.
        accuracy: Share whose likeliest label is right.
        calibration_error: Expected calibration error.
        coverage: Share whose set has the right label.
        labels_of_set: Labels of a set, on average.
    """

    n: int
    accuracy: float
    calibration_error: float
    coverage: float
    labels_of_set: float
