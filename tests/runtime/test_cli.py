"""`holocron-run` and `holocron-bench`: output, errors in one line, exit codes."""

import json
import signal
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime import HolocronError, cli
from runtime.cli.errors import OneLineCommand, one_line_errors
from runtime.table import TableLines, format_table


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for i, name in enumerate(("b.png", "a.jpg", "sub/c.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), 60 * i, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def invoke(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def one_error(result, *words):
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr


class TestRun:
    def test_a_table_of_a_folder_sorted(self, bundle, pictures):
        result = invoke(cli.run, bundle, pictures, "--threads", 1)
        assert result.exit_code == 0
        assert result.stderr == ""
        head, rule, *rows = result.stdout.splitlines()
        assert head.split() == ["image", "label", "score"]
        assert set(rule) == {"-", " "}
        assert [r.split()[0] for r in rows] == [str(pictures / n) for n in ("a.jpg", "b.png", "sub/c.png")]
        assert all(0 < float(r.split()[2]) <= 1 for r in rows)

    def test_top_gives_a_line_a_class(self, bundle, pictures):
        result = invoke(cli.run, bundle, pictures / "b.png", "--top", 3)
        assert len(result.stdout.splitlines()) == 2 + 3

    def test_json_is_a_list_of_answers(self, bundle, pictures):
        result = invoke(cli.run, bundle, pictures / "b.png", pictures / "a.jpg", "--json", "--top", 2)
        first, second = json.loads(result.stdout)
        assert first["image"] == str(pictures / "b.png")
        assert second["image"] == str(pictures / "a.jpg")
        assert first["label"] == first["top"][0]["label"]
        assert len(first["top"]) == 2

    def test_a_bad_image_among_good_ones_is_reported_and_the_others_answered(self, bundle, pictures):
        result = invoke(cli.run, bundle, pictures / "b.png", pictures / "notes.txt", pictures / "a.jpg", "--json")
        one_error(result, "notes.txt is not an image")
        good, bad, last = json.loads(result.stdout)
        assert "label" in good
        assert "label" in last
        assert set(bad) == {"image", "error"}

    def test_images_are_worked_on_at_once_and_answered_as_alone(self, bundle, pictures):
        options = ("--json", "--precision", "fp32", "--backend", "onnxruntime")
        alone = json.loads(invoke(cli.run, bundle, pictures, "--threads", 1, *options).stdout)
        at_once = json.loads(invoke(cli.run, bundle, pictures, "--threads", 3, *options).stdout)
        assert at_once == alone
        fast = json.loads(invoke(cli.run, bundle, pictures, "--fast-decode", *options).stdout)
        assert fast == alone  # the pictures are small: there is nothing to leave out

    def test_a_folder_without_images(self, bundle, tmp_path):
        (tmp_path / "empty").mkdir()
        one_error(invoke(cli.run, bundle, tmp_path / "empty"), "has no images")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--precision", "fp16"], ("has no fp16", "it has fp32")),
            (["--precision", "int4"], ("'int4' is not one of",)),
            (["--backend", "tflite"], ("'tflite' is not one of",)),
            (["--backend", "openvino", "--device", "npu9"], ("has no device", "cpu")),
            (["--threads", "0"], ("--threads",)),
            (["--threads", "many"], ("--threads",)),
            (["--top", "0"], ("--top",)),
            (["--colour"], ("--colour",)),
        ],
    )
    def test_wrong_options_are_one_line(self, bundle, pictures, arguments, words):
        one_error(invoke(cli.run, bundle, pictures / "b.png", *arguments), *words)

    def test_missing_arguments_are_one_line(self, bundle):
        one_error(invoke(cli.run), "BUNDLE")
        one_error(invoke(cli.run, bundle), "IMAGE")

    def test_what_is_not_a_bundle_is_one_line(self, tmp_path, pictures, own_bundle):
        one_error(invoke(cli.run, tmp_path / "none", pictures), "is not there")
        one_error(invoke(cli.run, pictures, pictures), "is not a bundle")
        (own_bundle / "model.int8.cpu.onnx").write_bytes(b"cut")
        one_error(invoke(cli.run, own_bundle, pictures), "cut off or changed")

    def test_help(self):
        result = invoke(cli.run, "--help")
        assert result.exit_code == 0
        assert "Classify, segment or find objects in each IMAGE" in result.stdout


class TestBench:
    def test_a_table_with_a_row_for_each_precision(self, bundle):
        result = invoke(cli.bench, bundle, "--backend", "onnxruntime", "--iterations", 2, "--warmup", 0, "--threads", 1)
        assert result.exit_code == 0
        rows = result.stdout.splitlines()[2:]
        assert [r.split()[:5] for r in rows] == [
            ["fp32", "onnxruntime", "cpu", "1", "1"],
            ["int8.cpu", "onnxruntime", "cpu", "1", "1"],
        ]

    def test_json(self, bundle):
        options = ("--backend", "onnxruntime", "--precision", "fp32", "--iterations", 2, "--batch", 2, "--json")
        (row,) = json.loads(invoke(cli.bench, bundle, *options).stdout)
        assert (row["precision"], row["batch"], row["iterations"]) == ("fp32", 2, 2)
        assert row["p50_ms"] > 0

    def test_a_failing_combination_is_one_line_and_leaves_the_others(self, bundle):
        options = ("--backend", "onnxruntime", "--precision", "fp16", "--precision", "fp32", "--iterations", 1)
        result = invoke(cli.bench, bundle, *options)
        one_error(result, "fp16 on onnxruntime", "has no fp16")
        assert "fp32" in result.stdout

    def test_what_is_not_a_bundle_is_one_line(self, tmp_path):
        one_error(invoke(cli.bench, tmp_path), "is not a bundle")


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code", "line"),
        [
            (HolocronError("two\n lines"), 2, "error: two lines\n"),
            (OSError(28, "No space left on device", "/x"), 2, "error: No space left on device: /x\n"),
            (MemoryError(), 2, "error: there is not enough memory\n"),
            (KeyboardInterrupt(), 130, "error: interrupted\n"),
            (click.UsageError("no such thing"), 2, "error: no such thing\n"),
        ],
    )
    def test_each_is_one_line_and_a_code(self, capsys, error, code, line):
        with pytest.raises(SystemExit) as e, one_line_errors():
            raise error
        assert e.value.code == code
        assert capsys.readouterr().err == line

    def test_a_mistake_of_ours_keeps_its_traceback(self):
        with pytest.raises(ZeroDivisionError), one_line_errors():
            raise ZeroDivisionError

    def test_a_command_of_this_class_returns_its_code(self):
        @click.command(cls=OneLineCommand)
        @click.argument("code", type=int)
        def command(code):
            return code

        assert invoke(command, 0).exit_code == 0
        assert invoke(command, 3).exit_code == 3

    def test_a_closed_pipe_is_quiet(self, bundle, pictures):
        code = "from runtime.cli import run; run()"
        command = [sys.executable, "-c", code, str(bundle), *[str(pictures)] * 40, "--top", "4", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(60) == 141

    def test_an_interrupt_is_one_line(self):
        code = (
            "import click, sys, time; from runtime.cli.errors import OneLineCommand\n"
            "@click.command(cls=OneLineCommand)\n"
            "def wait(): print('ready', flush=True); time.sleep(60)\n"
            "wait([])"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert process.stderr.read() == "error: interrupted\n"


class TestTable:
    def test_columns_are_aligned_numbers_to_the_right(self):
        table = format_table(("name", "ms"), [("a", "9.50"), ("longer", "12.25"), (None, 3)])
        assert table == "name       ms\n------  -----\na        9.50\nlonger  12.25\n            3"

    def test_without_rows_there_are_headers(self):
        assert format_table(("a", "b"), []) == "a  b\n-  -"

    def test_control_characters_do_not_reach_the_terminal(self):
        assert "\x1b" not in format_table(("a",), [("\x1b[2Jx\n",)])

    def test_a_row_of_another_length_is_an_error(self):
        with pytest.raises(ValueError, match="1 cells for 2 headers"):
            format_table(("a", "b"), [("x",)])

    def test_rows_may_come_one_by_one(self):
        table = TableLines((("name", 6, False), ("ms", 5, True)))
        lines = [
            *table.head().split("\n"),
            table.row(("a", "9.50")),
            table.row((None, 3)),
            table.row(("longer name", 1)),
        ]
        assert lines == ["name       ms", "------  -----", "a        9.50", "            3", "longer name      1"]
        assert "\x1b" not in table.row(("\x1b[2J", 1))
        with pytest.raises(ValueError, match="longer"):
            table.row(("a",))
