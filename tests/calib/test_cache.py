import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib import (
    CalibrationCache,
    CalibrationError,
    CalibrationSettings,
    SchemeCalibration,
    TensorRange,
    read_cache,
    read_calibration,
)
from runtime.manifest import Preprocessing


@pytest.fixture
def cache(preprocessing):
    ranges = {
        "relu": TensorRange(0.0, 7.25, 6.1, (0.0, 6.0)),
        "input": TensorRange(-2.1, 2.6, 0.1 + 0.2, (-2.1, 1 / 3)),
    }
    chosen = {"relu": "mse", "input": "0.9 above"}
    scheme = SchemeCalibration(ranges, chosen, {"relu": (0.5, 2.0, 1 / 3)}, {"conv": "depthwise"})
    settings = CalibrationSettings("auto", "fast", False, 7)
    return CalibrationCache(settings, "a" * 64, "b" * 64, 40, preprocessing, {"trt": scheme, "cpu": scheme})


def facts(cache, **changes):
    return {
        "settings": cache.settings,
        "model": cache.model,
        "images": cache.images,
        "preprocessing": cache.preprocessing,
        **changes,
    }


def test_round_trip(cache, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(cache.to_json(), encoding="utf-8")
    assert read_cache(path) == cache
    assert read_calibration(path, **facts(cache)) == (cache, "")


def test_same_text_for_the_same_cache(cache):
    turned = replace(cache.schemes["cpu"], ranges=dict(reversed(cache.schemes["cpu"].ranges.items())))
    backwards = replace(cache, schemes={"cpu": turned, "trt": turned})
    assert backwards.to_json() == cache.to_json() == CalibrationCache.from_json(cache.to_json()).to_json()
    assert cache.to_json().endswith("}\n")


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-30, 1e30), st.floats(-1e30, 0), st.text())
def test_numbers_and_names_survive(symmetric, low, name):
    ranges = {name: TensorRange(low, symmetric, symmetric, (low, symmetric))}
    scheme = SchemeCalibration(ranges, {name: name}, {name: (symmetric,)}, {name: name})
    preprocessing = Preprocessing((8, 8), (0.5,) * 3, (0.25,) * 3)
    cache = CalibrationCache(CalibrationSettings(), "a" * 64, "b" * 64, 1, preprocessing, {"cpu": scheme})
    assert CalibrationCache.from_json(cache.to_json()) == cache


def test_what_does_not_serve(cache, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(cache.to_json(), encoding="utf-8")
    for changes, reason in (
        ({"model": "c" * 64}, "the model is another"),
        ({"images": "c" * 64}, "the images are others"),
        ({"preprocessing": replace(cache.preprocessing, size=(64, 64))}, "the preprocessing is another"),
        ({"settings": replace(cache.settings, method="entropy")}, "it was made with method auto"),
        ({"settings": replace(cache.settings, effort="high")}, "it was made with effort fast"),
        ({"settings": replace(cache.settings, per_tensor=True)}, "it was made with per tensor false"),
        ({"settings": replace(cache.settings, seed=0)}, "it was made with seed 7"),
    ):
        assert cache.mismatch(**facts(cache, **changes)) == reason
        assert read_calibration(path, **facts(cache, **changes)) == (None, reason)
    assert cache.mismatch(**facts(cache)) is None


def test_no_file(cache, tmp_path):
    assert read_calibration(tmp_path / "none.json", **facts(cache)) == (None, "there is none")
    with pytest.raises(CalibrationError, match=r"cannot read .*none\.json"):
        read_cache(tmp_path / "none.json")


def _set(*keys, to):
    def change(data):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


CORRUPTIONS = {
    "unknown version": (_set("schema_version", to=1), "schema_version is 1"),
    "version as a boolean": (_set("schema_version", to=True), "schema_version is True"),
    "no version": (lambda d: d.pop("schema_version"), "schema_version is None"),
    "unknown key": (_set("extra", to=1), "unknown key 'extra'"),
    "missing key": (lambda d: d.pop("schemes"), "lacks key 'schemes'"),
    "unknown method": (_set("method", to="kl"), "method is 'kl'"),
    "unhashable method": (_set("method", to=["mse"]), "method"),
    "no method": (lambda d: d.pop("method"), "lacks key 'method'"),
    "unknown effort": (_set("effort", to="most"), "effort is 'most'"),
    "a number for yes or no": (_set("per_tensor", to=1), "per_tensor is 1"),
    "seed as a boolean": (_set("seed", to=True), "seed is True"),
    "unknown scheme": (_set("schemes", "gpu", to={}), "unknown key 'gpu'"),
    "schemes as a list": (_set("schemes", to=[]), "schemes is no object"),
    "scheme lacks a part": (lambda d: d["schemes"]["cpu"].pop("factors"), "lacks key 'factors'"),
    "factors as a number": (_set("schemes", "cpu", "factors", "relu", to=2), "finite numbers"),
    "no factors": (_set("schemes", "cpu", "factors", "relu", to=[]), "positive numbers"),
    "a negative factor": (_set("schemes", "cpu", "factors", "relu", to=[1.0, -1.0]), "positive numbers"),
    "a reason as a number": (_set("schemes", "cpu", "kept_float", "conv", to=1), "kept_float"),
    "what chose as a number": (_set("schemes", "cpu", "chosen", "relu", to=None), "chosen"),
    "short digest": (_set("model", to="abc"), "model is 'abc'"),
    "digest as a number": (_set("images", to=7), "images is 7"),
    "no images": (_set("image_count", to=0), "image_count is 0"),
    "ranges as a list": (_set("schemes", "cpu", "ranges", to=[]), "ranges is no object"),
    "range as a number": (_set("schemes", "cpu", "ranges", "relu", to=3), "'relu'"),
    "range lacks a key": (lambda d: d["schemes"]["cpu"]["ranges"]["relu"].pop("minimum"), "lacks key 'minimum'"),
    "negative clip": (_set("schemes", "cpu", "ranges", "relu", "symmetric", to=-1), "'relu'.*no range"),
    "zero outside": (_set("schemes", "cpu", "ranges", "relu", "asymmetric", to=[1, 2]), "'relu'.*no range"),
    "empty range": (_set("schemes", "cpu", "ranges", "relu", "asymmetric", to=[0, 0]), "'relu'.*no range"),
    "three ends": (_set("schemes", "cpu", "ranges", "relu", "asymmetric", to=[0, 1, 2]), "expected 2 finite numbers"),
    "text": (_set("schemes", "cpu", "ranges", "relu", "maximum", to="7"), "expected 3 finite numbers"),
    "infinity": (_set("schemes", "cpu", "ranges", "relu", "maximum", to=float("inf")), "expected 3 finite numbers"),
    "not a number": (
        _set("schemes", "cpu", "ranges", "relu", "symmetric", to=float("nan")),
        "expected 3 finite numbers",
    ),
    "huge integer": (_set("schemes", "cpu", "ranges", "relu", "maximum", to=10**400), "expected 3 finite numbers"),
    "preprocessing as text": (_set("preprocessing", to="x"), "preprocessing is no object"),
    "fractional size": (_set("preprocessing", "size", to=[1.5, 2]), "size"),
    "zero std": (_set("preprocessing", "std", to=[1, 1, 0]), "std"),
    "unknown filter": (_set("preprocessing", "interpolation", to="cubic"), "interpolation is 'cubic'"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupt_contents(cache, tmp_path, name):
    change, message = CORRUPTIONS[name]
    data = json.loads(cache.to_json())
    change(data)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(data))
    with pytest.raises(CalibrationError, match=message) as error:
        read_cache(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    found, reason = read_calibration(path, **facts(cache))
    assert found is None
    assert reason == str(error.value)


@pytest.mark.parametrize("contents", [b"", b"\xff\xfe", b"[]", b"null", b'{"a": ', b"[" * 100_000, b"\0" * 10])
def test_corrupt_files(cache, tmp_path, contents):
    path = tmp_path / "calibration.json"
    path.write_bytes(contents)
    with pytest.raises(CalibrationError, match=r"calibration\.json"):
        read_cache(path)
    assert read_calibration(path, **facts(cache))[0] is None


def test_a_folder_and_a_huge_file(cache, tmp_path):
    with pytest.raises(CalibrationError, match="cannot read"):
        read_cache(tmp_path)
    path = tmp_path / "calibration.json"
    with path.open("wb") as f:
        f.truncate(65 * 2**20)
    with pytest.raises(CalibrationError, match="larger than 64 MiB"):
        read_cache(path)
