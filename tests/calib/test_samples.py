import json

import numpy as np
import pytest
from PIL import Image

from calib import ImageStream, find_images, sample_folder
from runtime.manifest import Preprocessing


@pytest.fixture(scope="module")
def records():
    return json.loads((sample_folder() / "SOURCES.json").read_text(encoding="utf-8"))["images"]


def test_a_few_dozen_under_a_megabyte(records):
    images = find_images(sample_folder())
    assert 32 <= len(images) <= 48
    assert [p.name for p in images] == sorted(r["file"] for r in records)
    assert sum(p.stat().st_size for p in sample_folder().iterdir() if p.is_file()) < 1_000_000
    assert all(max(Image.open(p).size) == 256 for p in images)


def test_every_sample_names_author_licence_and_source(records):
    for record in records:
        assert record["licence"] in ("CC0 1.0", "public domain")
        assert record["author"]
        assert record["url"].startswith("http")


def test_all_are_readable():
    stream = ImageStream(find_images(sample_folder()), Preprocessing((64, 64), (0.5,) * 3, (0.25,) * 3), 16)
    assert sum(len(batch) for batch in stream) == len(find_images(sample_folder()))
    assert stream.skipped == ()


def test_samples_are_the_crops_that_the_record_says(records):
    data = pytest.importorskip("skimage.data")
    for record in records:
        left, top, width, height = record["crop"]
        name = record["source"].removeprefix("skimage.data.")
        source = Image.fromarray(getattr(data, name)()).convert("RGB")
        sample = Image.open(sample_folder() / record["file"])
        crop = source.crop((left, top, left + width, top + height)).resize(sample.size, Image.Resampling.LANCZOS)
        difference = np.asarray(crop, np.float64) - np.asarray(sample)
        assert np.sqrt(np.mean(difference**2)) < 10, record["file"]
