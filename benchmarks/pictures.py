"""Pictures for `classify.py`: things that are no fruit, and studio photos made to look as if taken in a shop."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

SIDE = 320
VARIANTS = 4
"""Pictures of each thing: other colours, places and light."""

Colour = tuple[int, int, int]


def no_fruit(name: str, variant: int) -> Image.Image:
    """A picture of a thing of ``THINGS``; the same one each time."""
    rng = np.random.default_rng([variant, *name.encode()])
    picture = THINGS[name](rng)
    grain = rng.normal(0, 4, (picture.height, picture.width, 1))
    return Image.fromarray(np.clip(np.asarray(picture, float) + grain, 0, 255).astype(np.uint8))


def as_in_a_shop(photo: Image.Image, rng: Generator) -> Image.Image:
    """A studio photo on a white ground before another background, smaller, out of the middle, in other light.

    The ground is what is nearly white and touches the border. Backgrounds are pieces of the two photos that
    scikit-learn has, drawn patterns and plain colours.
    """
    cut_out = ImageChops.invert(ground_of(photo)).filter(ImageFilter.GaussianBlur(1))
    side = photo.width
    scene = background(rng, side)
    size = int(side * rng.uniform(0.55, 1.0))
    place = tuple(int(rng.uniform(0, side - size + 1)) for _ in range(2))
    scene.paste(photo.resize((size, size)), (place[0], place[1]), cut_out.resize((size, size)))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        scene = enhance(scene).enhance(rng.uniform(0.6, 1.3))
    warmth = rng.uniform(0.85, 1.15)
    lit = np.asarray(scene, float) * [warmth, 1.0, 1 / warmth]
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def ground_of(photo: Image.Image) -> Image.Image:
    """The ground of a studio photo: a mask that is 255 where nearly white touches a corner."""
    is_white = np.asarray(photo).min(axis=2) > 225  # noqa: PLR2004
    white = Image.fromarray(np.where(is_white, 255, 0).astype(np.uint8)).copy()  # one that can be drawn on
    for corner in ((0, 0), (photo.width - 1, 0), (0, photo.height - 1), (photo.width - 1, photo.height - 1)):
        if white.getpixel(corner) == 255:  # noqa: PLR2004
            ImageDraw.floodfill(white, corner, 128)
    return white.point([255 if value == 128 else 0 for value in range(256)])  # noqa: PLR2004


def background(rng: Generator, side: int) -> Image.Image:
    """A background, ``side`` pixels wide and high."""
    kind = rng.integers(4)
    if kind < 2:  # noqa: PLR2004 -- half of them
        photo = packaged_photo(("china.jpg", "flower.jpg")[kind])
        cut = int(rng.uniform(side, photo.height))
        left, top = (int(rng.uniform(0, most - cut + 1)) for most in photo.size)
        return photo.crop((left, top, left + cut, top + cut)).resize((side, side))
    if kind == 2:  # noqa: PLR2004
        return Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((side, side))
    return _wall(rng).resize((side, side))


def packaged_photo(name: str) -> Image.Image:
    """A photo that scikit-learn brings along: a temple (`china.jpg`) or a flower (`flower.jpg`)."""
    import sklearn.datasets

    return Image.open(Path(sklearn.datasets.__file__).parent / "images" / name).convert("RGB")


def jpeg(picture: Image.Image) -> bytes:
    """The bytes of a picture as a JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _colour(rng: Generator, low: int = 30, high: int = 230) -> Colour:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def _wall(rng: Generator) -> Image.Image:
    """A blank wall, lit from one side."""
    tone = np.array(_colour(rng, 120, 245), float)
    light = np.linspace(rng.uniform(0.7, 1), rng.uniform(0.7, 1), SIDE)
    wall = np.broadcast_to(tone * light[:, np.newaxis], (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8)).convert("RGB")


def _on_a_wall(rng: Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = _wall(rng)
    return picture, ImageDraw.Draw(picture)


def _cup(rng: Generator) -> Image.Image:
    picture, draw = _on_a_wall(rng)
    draw.rectangle((0, 220, SIDE, SIDE), fill=_colour(rng))
    cup = _colour(rng)
    draw.ellipse((200, 120, 280, 210), outline=cup, width=16)
    draw.rectangle((90, 90, 230, 240), fill=cup)
    draw.ellipse((90, 215, 230, 265), fill=cup)
    draw.ellipse((90, 70, 230, 112), fill=_colour(rng), outline=cup, width=6)
    return picture


def _face(rng: Generator) -> Image.Image:
    picture, draw = _on_a_wall(rng)
    skin = tuple(int(tone * rng.uniform(0.5, 1)) for tone in (240, 200, 170))
    draw.ellipse((70, 20, 250, 230), fill=_colour(rng, 20, 120))  # hair
    draw.rectangle((125, 230, 195, SIDE), fill=skin)
    draw.ellipse((85, 50, 235, 270), fill=skin)
    for left in (115, 175):
        draw.ellipse((left, 125, left + 32, 145), fill=(250, 250, 250))
        draw.ellipse((left + 10, 127, left + 24, 143), fill=_colour(rng, 20, 110))
        draw.line((left - 4, 112, left + 36, 108), fill=(60, 40, 30), width=5)
    draw.line((160, 140, 150, 185, 168, 188), fill=(150, 100, 80), width=4)
    draw.ellipse((130, 210, 190, 232), fill=(180, 70, 70))
    return picture


def _cat(rng: Generator) -> Image.Image:
    picture, draw = _on_a_wall(rng)
    fur = _colour(rng, 40, 200)
    draw.ellipse((60, 180, 270, 340), fill=fur)
    draw.ellipse((80, 70, 240, 220), fill=fur)
    for ear in ((85, 120, 95, 30, 150, 80), (235, 120, 225, 30, 170, 80)):
        draw.polygon(ear, fill=fur, outline=(40, 30, 30))
    for left in (112, 176):
        draw.ellipse((left, 120, left + 34, 150), fill=(200, 210, 80))
        draw.ellipse((left + 13, 120, left + 21, 150), fill=(10, 10, 10))
    draw.polygon((150, 165, 170, 165, 160, 178), fill=(220, 120, 130))
    for side in (-1, 1):
        for tilt in (-14, 0, 14):
            draw.line((160 + 20 * side, 180, 160 + 95 * side, 180 + tilt), fill=(245, 245, 245), width=2)
    return picture


def _page(rng: Generator) -> Image.Image:
    """A page of print."""
    picture = Image.new("RGB", (SIDE, SIDE), (245, 243, 236))
    draw = ImageDraw.Draw(picture)
    for top in range(24, SIDE - 20, 15):
        left = 20
        while left < SIDE - 60:
            word = int(rng.uniform(12, 48))
            draw.rectangle((left, top, left + word, top + 7), fill=_colour(rng, 20, 70))
            left += word + 8
    return picture


def _keyboard(rng: Generator) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), _colour(rng, 20, 90))
    draw, key = ImageDraw.Draw(picture), _colour(rng, 60, 230)
    for top in range(12, SIDE - 30, 44):
        for left in range(8 + top // 4 % 14, SIDE - 30, 42):
            draw.rounded_rectangle((left, top, left + 36, top + 38), 6, fill=key, outline=(20, 20, 20))
    return picture


def _bricks(rng: Generator) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), (190, 185, 175))
    draw, brick = ImageDraw.Draw(picture), np.array([165, 80, 60]) * rng.uniform(0.6, 1.2)
    for row, top in enumerate(range(0, SIDE, 32)):
        for left in range(-40 * (row % 2), SIDE, 80):
            tone = tuple(np.clip(brick * rng.uniform(0.85, 1.15), 0, 255).astype(int).tolist())
            draw.rectangle((left, top, left + 75, top + 27), fill=tone)
    return picture


def _street(rng: Generator) -> Image.Image:
    """Houses below a sky."""
    picture = Image.new("RGB", (SIDE, SIDE), _colour(rng, 140, 230))
    draw, left = ImageDraw.Draw(picture), 0
    while left < SIDE:
        width, top = int(rng.uniform(40, 90)), int(rng.uniform(40, 160))
        draw.rectangle((left, top, left + width, 270), fill=_colour(rng))
        for window in range(top + 14, 250, 34):
            draw.rectangle((left + 10, window, left + 22, window + 18), fill=(250, 240, 170))
        left += width
    draw.rectangle((0, 270, SIDE, SIDE), fill=(80, 80, 85))
    return picture


def _noise(rng: Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def _piece_of(name: str) -> Callable[[Generator], Image.Image]:
    """Pieces of a photo that scikit-learn has."""

    def piece(rng: Generator) -> Image.Image:
        photo = packaged_photo(name)
        cut = int(rng.uniform(0.5, 1) * photo.height)
        left, top = (int(rng.uniform(0, most - cut + 1)) for most in photo.size)
        return photo.crop((left, top, left + cut, top + cut))

    return piece


THINGS: Mapping[str, Callable[[Generator], Image.Image]] = {
    "a blank wall": _wall,
    "a cup": _cup,
    "a face": _face,
    "a cat": _cat,
    "a printed page": _page,
    "a keyboard": _keyboard,
    "a brick wall": _bricks,
    "a street": _street,
    "noise": _noise,
    "a temple (photo)": _piece_of("china.jpg"),
    "a flower (photo)": _piece_of("flower.jpg"),
}
"""Things that are no fruit by name: how a picture of them is made of random numbers."""
