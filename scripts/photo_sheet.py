"""Draw docs/images/photos.jpg: a few of the photos that `make run` draws, one column a kind."""

import tempfile
from pathlib import Path

from sample_photos import LABELS, contact_sheet, draw, photo_key

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "photos.jpg"
NUMBERS = (1, 2, 3, 5, 8)


def main() -> None:
    """Run the command."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in NUMBERS:
            for label in LABELS:
                path = Path(folder) / photo_key(label, "Training", number)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(draw(label, "Training", number))
                paths.append(path)
        sheet = contact_sheet(paths, columns=len(LABELS), cell=84)
    sheet.convert("RGB").save(PICTURE, quality=86, optimize=True)


if __name__ == "__main__":
    main()
