"""Cut the sample images of `calib/samples` from the photographs that come with scikit-image, and record where from.

Only photographs that their author put in the public domain or under CC0, as scikit-image documents, are used.

    python tools/make_samples.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

LONG_SIDE = 256  # pixels of the longer side
QUALITY = 85
CC0 = "CC0 1.0"
PUBLIC_DOMAIN = "public domain"


@dataclass(frozen=True)
class Source:
    """A photograph of scikit-image.

    Attributes:
        title: what it shows.
        author: who took it or gave it away.
        licence: as scikit-image states it.
        url: where scikit-image says that it comes from; otherwise the documentation that states the licence.
        crops: left, top, width and height of each crop in pixels.
    """

    title: str
    author: str
    licence: str
    url: str
    crops: tuple[tuple[int, int, int, int], ...]


_DOCS = "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data."
SOURCES = {
    "astronaut": Source(
        "Eileen Collins",
        "NASA",
        PUBLIC_DOMAIN,
        "https://flic.kr/p/r9qvLn",
        (
            (0, 0, 512, 512),
            (96, 0, 256, 256),
            (0, 0, 256, 384),
            (256, 32, 256, 192),
            (128, 256, 384, 256),
            (160, 64, 144, 144),
        ),
    ),
    "brick": Source(
        "a brick wall",
        "CC0Textures",
        CC0,
        "https://cc0textures.com/view.php?tex=Bricks25",
        ((0, 0, 512, 512), (128, 96, 256, 192)),
    ),
    "camera": Source(
        "a photographer with a camera",
        "Lav Varshney",
        CC0,
        _DOCS + "camera",
        ((0, 0, 512, 512), (128, 0, 256, 384), (0, 200, 512, 312), (224, 160, 256, 192), (160, 40, 192, 192)),
    ),
    "cat": Source(
        "Chelsea the cat",
        "Stefan van der Walt",
        CC0,
        _DOCS + "cat",
        ((0, 0, 451, 300), (75, 0, 300, 300), (96, 48, 240, 160), (120, 0, 200, 300), (210, 80, 160, 120)),
    ),
    "clock": Source(
        "a wall clock, blurred by the camera's motion",
        "Stefan van der Walt",
        PUBLIC_DOMAIN,
        _DOCS + "clock",
        ((0, 0, 400, 300), (100, 40, 220, 220)),
    ),
    "coffee": Source(
        "a cup of coffee at Pikolo Espresso Bar",
        "Rachel Michetti",
        CC0,
        _DOCS + "coffee",
        (
            (0, 0, 600, 400),
            (100, 0, 400, 400),
            (0, 0, 300, 400),
            (300, 100, 300, 300),
            (180, 60, 256, 192),
            (0, 240, 360, 160),
        ),
    ),
    "grass": Source(
        "grass",
        "linolafett",
        CC0,
        "https://www.deviantart.com/linolafett/art/Grass-01-434853879",
        ((0, 0, 384, 288), (256, 256, 160, 160)),
    ),
    "gravel": Source(
        "gravel",
        "CC0Textures",
        CC0,
        "https://cc0textures.com/view.php?tex=Gravel04",
        ((0, 0, 384, 288), (256, 256, 160, 160)),
    ),
    "hubble_deep_field": Source(
        "the Hubble eXtreme Deep Field",
        "NASA",
        PUBLIC_DOMAIN,
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        ((0, 0, 1000, 872), (0, 0, 400, 300), (500, 200, 320, 320), (300, 500, 240, 360)),
    ),
    "retina": Source(
        "the fundus of an eye",
        "Mikael Häggström",
        CC0,
        "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        ((0, 0, 1411, 1411), (200, 400, 640, 480)),
    ),
    "rocket": Source(
        "the launch of DSCOVR on a Falcon 9",
        "SpaceX",
        PUBLIC_DOMAIN,
        "https://www.flickr.com/photos/spacexphotos/16511594820/in/photostream/",
        ((0, 0, 640, 427), (213, 0, 427, 427), (240, 60, 200, 300), (0, 107, 320, 320), (256, 220, 256, 192)),
    ),
}


def make_samples(folder: Path) -> int:
    """Write the crops and `SOURCES.json`.

    Args:
        folder: where to; made if it does not exist

    Returns:
        bytes written
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for name, source in SOURCES.items():
        photograph = Image.fromarray(np.asarray(getattr(skimage.data, name)())).convert("RGB")
        for number, (left, top, width, height) in enumerate(source.crops):
            if left + width > photograph.width or top + height > photograph.height:
                raise ValueError(f"crop {number} of {name} leaves the photograph of {photograph.size} pixels")
            scale = LONG_SIDE / max(width, height)
            size = (round(width * scale), round(height * scale))
            crop = photograph.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.LANCZOS)
            path = folder / f"{name}_{number}.jpg"
            crop.save(path, quality=QUALITY, optimize=True)
            about = asdict(source)
            del about["crops"]
            records.append(
                {"file": path.name, "source": f"skimage.data.{name}", "crop": [left, top, width, height], **about}
            )
    text = json.dumps(
        {"crop": "left, top, width, height in pixels of the source", "images": records}, indent=1, ensure_ascii=False
    )
    (folder / "SOURCES.json").write_text(text + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".jpg", ".json"))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "calib" / "samples"
    sys.stdout.write(f"{target}: {make_samples(target)} bytes\n")
