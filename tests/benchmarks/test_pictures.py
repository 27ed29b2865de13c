"""The pictures of `classify.py`: the same ones each time, and studio photos that lose their ground and nothing else."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.pictures import THINGS, as_in_a_shop, ground_of, no_fruit

pytestmark = pytest.mark.jobs

RED = (200, 30, 40)


def studio_photo():
    """A red fruit with a white gleam on a white ground."""
    photo = Image.new("RGB", (100, 100), (252, 253, 251))
    draw = ImageDraw.Draw(photo)
    draw.ellipse((20, 20, 80, 80), fill=RED)
    draw.ellipse((45, 40, 52, 47), fill=(255, 255, 255))
    return photo


@pytest.mark.parametrize("name", THINGS)
def test_a_thing_is_drawn_the_same_each_time_and_its_variants_differ(name):
    first, again, other = (np.asarray(no_fruit(name, variant)) for variant in (0, 0, 1))
    assert first.shape[2] == 3
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_the_ground_is_what_is_white_up_to_the_border():
    ground = np.asarray(ground_of(studio_photo()))
    assert set(np.unique(ground)) == {0, 255}
    assert ground[0].all()
    assert ground[:, -1].all()
    assert not ground[30:70, 30:70].any(), "neither the fruit nor its gleam"


def test_a_photo_as_in_a_shop_shows_the_fruit_before_something_else():
    pictures = [np.asarray(as_in_a_shop(studio_photo(), np.random.default_rng(seed)), float) for seed in range(8)]
    assert {picture.shape for picture in pictures} == {(100, 100, 3)}
    for picture in pictures:
        red = (picture[..., 0] > 1.5 * picture[..., 1]) & (picture[..., 0] > 1.5 * picture[..., 2])
        assert red.mean() > 0.05, "the fruit is there"
    white = [float((picture.min(axis=2) > 225).mean()) for picture in pictures]
    assert np.mean(white) < 0.2, "the studio is not"
