"""The pictures that integer backbones are calibrated on: a part of a backbone's identity, so they never change."""

import numpy as np
import pytest

from fruits.backbones.calibration import NAME, described, pictures
from fruits.backbones.card import Calibration, Preprocessing

pytestmark = [pytest.mark.jobs]


def test_the_pictures_of_a_version_never_change() -> None:
    digest = "f94d890236f77725c4f18f6adb734b68d3facf74c12e826cafc9ef1233fb05c5"
    found = described(pictures(Preprocessing(224, 224)))
    assert found == Calibration("colour-grids-1", 100, digest), f"{NAME}: other pictures are another version"


def test_the_pictures_have_the_networks_input_size_and_depend_on_nothing_else() -> None:
    wide = pictures(Preprocessing(32, 48, "bicubic", 0.5))
    assert wide.shape == (100, 32, 48, 3)
    assert np.array_equal(wide, pictures(Preprocessing(32, 48)))


def test_the_pictures_differ_and_reach_both_ends_of_the_pixels_range() -> None:
    found = pictures(Preprocessing(56, 56))
    assert (int(found.min()), int(found.max())) == (0, 255)
    assert len({picture.tobytes() for picture in found}) == len(found)
