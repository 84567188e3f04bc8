"""Quantizing goes on where an earlier run was interrupted."""

import onnx
import pytest
import torch

from calib import CalibrationSettings, SchemeCalibration, TensorRange
from export import export_model
from export.quantize import layerwise
from export.quantize.layerwise import LayerOutcome, QuantizedLayer
from export.quantize.state import RoundingState, rounding_state


def layer(bias=True):
    codes = torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4)
    return QuantizedLayer(codes, torch.tensor([0.5, 0.25, 1e-7]), torch.tensor([1.0, -2.0, 0.0]) if bias else None)


OUTCOME = LayerOutcome("features.0/conv", 0.25, 0.125, 0.01, float("inf"))


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_comes_back_as_it_was(tmp_path, bias):
    state = RoundingState(tmp_path / "state")
    assert state.layers() == {}
    state.add(layer(bias), OUTCOME)
    ((name, (found, outcome)),) = RoundingState(tmp_path / "state").layers().items()
    assert (name, outcome) == (OUTCOME.name, OUTCOME)
    assert torch.equal(found.codes, layer().codes)
    assert found.codes.dtype == torch.int8
    assert torch.equal(found.scale, layer().scale)
    assert (found.bias is None) == (not bias)
    state.remove()
    assert not (tmp_path / "state").exists()
    state.remove()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"not an archive", None])
def test_what_cannot_be_read_is_no_layer(tmp_path, damage):
    state = RoundingState(tmp_path)
    state.add(layer(), OUTCOME)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    assert state.layers() == {}


def test_a_folder_that_cannot_be_written_is_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    state = RoundingState(tmp_path / "file" / "state")
    state.add(layer(), OUTCOME)
    assert state.layers() == {}


def test_everything_that_matters_is_in_the_name(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calibration = SchemeCalibration({"x": TensorRange(-1.0, 1.0, 1.0, (-1.0, 1.0))})
    usual = ("a", "b", "cpu", CalibrationSettings(), calibration)
    first = rounding_state(*usual).folder
    assert first == rounding_state(*usual).folder
    assert tmp_path in first.parents
    others = [
        ("c", *usual[1:]),
        ("a", "c", *usual[2:]),
        ("a", "b", "trt", *usual[3:]),
        (*usual[:3], CalibrationSettings(effort="fast"), calibration),
        (*usual[:4], SchemeCalibration({"x": TensorRange(-1.0, 1.0, 0.5, (-1.0, 1.0))})),
        (*usual[:4], SchemeCalibration(calibration.ranges, kept_float={"y": "depthwise"})),
    ]
    assert len({first, *(rounding_state(*other).folder for other in others)}) == 1 + len(others)


def test_an_export_goes_on_where_it_was_interrupted(own_bundle, photos, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real, solved = layerwise.round_compensating, []

    def interrupted(weight, *rest):
        if len(solved) == 2:
            raise KeyboardInterrupt
        solved.append(weight.shape)
        return real(weight, *rest)

    monkeypatch.setattr(layerwise, "round_compensating", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(own_bundle, int8=True, calib=photos, effort="fast")
    assert not list(own_bundle.glob("*int8*"))
    kept = list((tmp_path / "cache").rglob("*.npz"))
    assert len(kept) == 2

    again = []
    monkeypatch.setattr(layerwise, "round_compensating", lambda w, *rest: again.append(w.shape) or real(w, *rest))
    resumed = export_model(own_bundle, int8=True, calib=photos, effort="fast")
    assert not list((tmp_path / "cache").rglob("*.npz")), "nothing is kept of a finished export"
    solved_again = list(again)
    again.clear()
    whole = export_model(own_bundle, tmp_path / "whole", int8=True, calib=photos, effort="fast", force=True)
    assert len(again) == len(solved_again) + 2
    for file in ("model.int8.cpu.onnx", "model.int8.trt.onnx"):
        first, second = (onnx.load(result.bundle / file).graph for result in (resumed, whole))
        assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
