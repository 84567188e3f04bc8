"""Timing a bundle: what the rows say, not how fast they are."""

import dataclasses

import pytest

from runtime import BackendError, BundleError
from runtime.bench import BenchRow, benchmark, peak_memory
from runtime.manifest import Preprocessing, TensorSpec


def test_a_row_for_each_precision_and_backend(bundle):
    said = []
    rows = benchmark(bundle, backends=["onnxruntime"], batch=2, threads=1, iterations=5, warmup=1, progress=said.append)
    assert [(r.precision, r.backend, r.device) for r in rows] == [
        ("fp32", "onnxruntime", "cpu"),
        ("int8.cpu", "onnxruntime", "cpu"),  # not int8.trt, which nothing fuses there
    ]
    assert said == ["timing fp32 on onnxruntime", "timing int8.cpu on onnxruntime"]
    for row in rows:
        assert isinstance(row, BenchRow)
        assert dataclasses.is_dataclass(row)
        assert (row.threads, row.batch, row.iterations) == (1, 2, 5)
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.images_per_second > 0
        assert 10 < row.peak_memory_mb < 2000


def test_peak_memory_is_of_the_row_alone(bundle):
    ballast = bytearray(300 * 2**20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    (row,) = benchmark(bundle, ["fp32"], ["onnxruntime"], iterations=1, warmup=0)
    assert peak_memory() > 300 * 2**20
    assert row.peak_memory_mb < 300


def test_a_combination_that_fails_leaves_the_others(bundle):
    failed = []
    rows = benchmark(
        bundle,
        ["fp16", "fp32"],
        ["onnxruntime"],
        iterations=1,
        warmup=0,
        on_error=lambda precision, backend, error: failed.append((precision, backend, str(error))),
    )
    assert [r.precision for r in rows] == ["fp32"]
    assert failed[0][:2] == ("fp16", "onnxruntime")
    assert "has no fp16" in failed[0][2]
    with pytest.raises(BackendError, match="has no fp16"):
        benchmark(bundle, ["fp16"], ["onnxruntime"], iterations=1)


def test_a_crash_is_an_error_of_that_row(bundle, monkeypatch):
    monkeypatch.setattr("runtime.bench._CHILD", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(BackendError, match="timing on onnxruntime ended with exit code -11"):
        benchmark(bundle, ["fp32"], ["onnxruntime"], iterations=1)


def test_a_lone_file_is_timed(lone_onnx):
    (row,) = benchmark(lone_onnx, backends=["onnxruntime"], iterations=1, warmup=0)
    assert row.precision == "int8.cpu"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"batch": 0}, ValueError),
        ({"iterations": 0}, ValueError),
        ({"warmup": -1}, ValueError),
        ({"threads": 0}, ValueError),
        ({"batch": 1.5}, TypeError),
        ({"iterations": True}, TypeError),
        ({"backends": ["tflite"]}, BackendError),
    ],
)
def test_wrong_arguments(bundle, arguments, error):
    with pytest.raises(error):
        benchmark(bundle, **arguments)


def test_what_is_not_a_bundle_is_an_error(tmp_path):
    with pytest.raises(BundleError):
        benchmark(tmp_path, iterations=1)


def test_example_feeds_have_the_networks_shapes(manifest_of):
    from runtime.bench import example_feeds

    manifest = manifest_of(
        inputs=(TensorSpec("input", "float16", ("batch", 3, 4, 4)), TensorSpec("n", "int64", (2,))),
        preprocessing=Preprocessing((4, 4), (0, 0, 0), (1, 1, 1)),
    )
    feeds = example_feeds(manifest, 3)
    assert (feeds["input"].shape, feeds["input"].dtype) == ((3, 3, 4, 4), "float16")
    assert feeds["n"].tolist() == [0, 0]
    assert (example_feeds(manifest, 3)["input"] == feeds["input"]).all()
