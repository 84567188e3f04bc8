"""`holocron-run` with videos, addresses and cameras."""

import gc
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime import ImageError, Segmentation, load, open_video
from runtime.cli import run
from runtime.cli.answers import Answering
from runtime.cli.sources import list_sources
from runtime.video.readers import VideoSource


def invoke(*arguments):
    result = CliRunner().invoke(run, [*map(str, arguments), "--backend", "onnxruntime"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def label(entry):
    return entry["classes"][0]["label"]


def one_error(result, *words):
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr


class TestOutput:
    def test_a_row_for_each_answer(self, segmenter, ride, library):
        result = invoke(segmenter, ride)
        assert (result.exit_code, result.stderr) == (0, "")
        head, rule, *rows = result.stdout.splitlines()
        assert head.split() == ["source", "frame", "time", "label", "share"]
        assert set(rule) == {"-", " "}
        assert [row.split() for row in rows] == [
            [str(ride), str(i), f"{i / 10:.3f}", ("red", "green", "blue")[i % 3], "1.0000"] for i in range(12)
        ]
        assert len({len(row) for row in rows}) == 1  # the columns are as wide from the first row on

    def test_json_is_an_object_a_line(self, segmenter, ride, library):
        entries = lines(invoke(segmenter, ride, "--json"))
        assert [(e["source"], e["frame"], e["time"]) for e in entries] == [(str(ride), i, i / 10) for i in range(12)]
        assert [label(e) for e in entries] == ["red", "green", "blue"] * 4
        assert entries[0]["size"] == [48, 64]

    def test_several_classes_of_a_frame_are_rows_below_it(self, bundle, ride):
        rows = invoke(bundle, ride, "--top", 3, "--frames", 2).stdout.splitlines()[2:]
        assert [len(row.split()) for row in rows] == [5, 2, 2] * 2

    def test_some_of_the_frames(self, segmenter, ride, library):
        assert [e["frame"] for e in lines(invoke(segmenter, ride, "--json", "--every", 5))] == [0, 5, 10]
        assert [e["frame"] for e in lines(invoke(segmenter, ride, "--json", "--frames", 2))] == [0, 1]
        some = lines(invoke(segmenter, ride, "--json", "--frames", 2, "--every", 4))
        assert [(e["frame"], label(e)) for e in some] == [(0, "red"), (4, "green")]

    def test_images_and_videos_in_order(self, segmenter, ride, tmp_path, videos):
        (tmp_path / "pictures").mkdir()
        for name in ("a", "b"):
            Image.fromarray(videos.solid("green")).save(tmp_path / "pictures" / f"{name}.png")
        arguments = (tmp_path / "pictures", ride, tmp_path / "pictures" / "a.png", "--frames", 1)
        entries = lines(invoke(segmenter, *arguments, "--json"))
        assert [Path(e.get("image", e.get("source"))).name for e in entries] == ["a.png", "b.png", "ride.mp4", "a.png"]
        assert [label(e) for e in entries] == ["green", "green", "red", "green"]
        rows = invoke(segmenter, *arguments).stdout.splitlines()[2:]
        assert [row.split()[1:] for row in rows[1:3]] == [["green", "1.0000"], ["0", "0.000", "red", "1.0000"]]

    def test_capital_suffixes_are_videos(self, segmenter, ride):
        assert len(lines(invoke(segmenter, ride.rename(ride.with_name("RIDE.MP4")), "--json"))) == 12

    def test_a_folder_of_that_name_is_a_folder(self, segmenter, tmp_path, videos):
        (tmp_path / "odd.mp4").mkdir()
        Image.fromarray(videos.solid("blue")).save(tmp_path / "odd.mp4" / "a.png")
        (entry,) = json.loads(invoke(segmenter, tmp_path / "odd.mp4", "--json").stdout)
        assert label(entry) == "blue"

    def test_frames_are_in_the_order_of_channels_that_the_network_takes(self, bgr_segmenter, ride, library):
        assert [label(e) for e in lines(invoke(bgr_segmenter, ride, "--json"))] == ["red", "green", "blue"] * 4

    def test_an_answer_is_there_before_the_video_ends(self, segmenter, opencv, stand_in, videos, monkeypatch):
        """The camera gives its fourth frame only once an answer was printed."""
        printed, echo = [], click.echo

        def camera():
            for i, frame in enumerate(videos.colourful(4)):
                if i == 3:
                    for _ in range(1000):
                        if len(printed) > 1:
                            break
                        stand_in.time.sleep(0.02)
                    assert len(printed) > 1
                yield frame[..., ::-1].copy(), 0.0

        opencv.cameras[0] = stand_in.Camera([])
        monkeypatch.setattr(stand_in.Camera, "__iter__", lambda self: camera())
        monkeypatch.setattr(click, "echo", lambda *a, **k: (printed.append(a), echo(*a, **k)))
        result = invoke(segmenter, "--camera", 0)
        one_error(result, "the camera 0 gives no more frames, after 4")

    def test_memory_does_not_grow_with_the_video(self, segmenter, tmp_path, videos):
        video = videos.write(tmp_path / "long.mp4", videos.colourful(150, 16, 16))
        with load(segmenter, backend="onnxruntime", threads=1) as model:
            answering = Answering(model, 2, None, None, None, 1)
            count = 0
            for entry in answering.entries(list_sources([str(video)])):
                assert label(entry) == ("red", "green", "blue")[count % 3]
                count += 1
                if count % 50 == 0:
                    assert sum(type(o) is Segmentation for o in gc.get_objects()) < 20
        assert count == 150


class TestSaving:
    def test_a_video_with_its_classes(self, segmenter, ride, tmp_path, library, videos):
        result = invoke(segmenter, ride, "--save", tmp_path / "out", "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        saved = tmp_path / "out" / "ride.mp4"
        assert {e["saved"] for e in lines(result)} == {str(saved)}
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["ride.mp4"]
        with open_video(saved) as video:
            assert video.fps == pytest.approx(10)
            frames = list(video)
        assert len(frames) == 12
        # Half of a red pixel (255, 0, 0), and half of the class's colour: of the second class (128, 0, 0).
        np.testing.assert_allclose(frames[0].mean(axis=(0, 1)), (191, 0, 0), atol=12)

    def test_a_video_with_its_boxes(self, detector, ride, tmp_path, library):
        result = invoke(detector, ride, "--save", tmp_path / "out", "--every", 3)
        assert result.exit_code == 0
        with open_video(tmp_path / "out" / "ride.mp4") as video:
            assert video.fps == pytest.approx(10 / 3, rel=0.11)  # it lasts as long; the stand-in rounds
            frames = list(video)
        assert len(frames) == 4
        for frame in frames:
            assert abs(frame[:, 40:].mean(axis=(0, 1)) - (255, 0, 0)).max() < 16  # every third frame is red
        assert frames[0][8:20, 0, 0].mean() < 180  # the side of the box, of a darker red

    def test_frames_in_bgr_are_saved_as_they_look(self, bgr_segmenter, ride, tmp_path, videos):
        invoke(bgr_segmenter, ride, "--save", tmp_path)
        one_error(invoke(bgr_segmenter, ride, "--save", tmp_path), "would write over", "ride.mp4")
        invoke(bgr_segmenter, ride, "--save", tmp_path / "out")
        frames = list(open_video(tmp_path / "out" / "ride.mp4"))
        # The colours of the classes blue (128, 0, 0), green (0, 128, 0) and red (128, 128, 0).
        np.testing.assert_allclose(frames[0].mean(axis=(0, 1)), (191, 64, 0), atol=12)
        np.testing.assert_allclose(frames[2].mean(axis=(0, 1)), (64, 0, 127), atol=12)

    def test_names(self, segmenter, ride, tmp_path, videos):
        (tmp_path / "b").mkdir()
        other = videos.write(tmp_path / "b" / "ride.mkv", videos.colourful(2))
        invoke(segmenter, ride, other, "--save", tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ride-1.mp4", "ride.mp4"]

    def test_what_is_read_is_not_written_over(self, segmenter, ride, tmp_path, videos):
        Image.fromarray(videos.solid("green")).save(tmp_path / "a.png")
        before = {path: path.read_bytes() for path in (ride, tmp_path / "a.png")}
        one_error(invoke(segmenter, ride, "--save", tmp_path), "would write over", "choose another folder")
        one_error(invoke(segmenter, tmp_path / "a.png", "--save", tmp_path), "would write over", "a.png")
        assert {path: path.read_bytes() for path in before} == before

    def test_sizes_that_change(self, segmenter, tmp_path, videos):
        with (tmp_path / "sizes.mjpeg").open("wb") as file:
            for size in ((48, 64), (20, 90), (64, 48)):
                Image.fromarray(videos.solid("red", *size)).save(file, "JPEG")
        result = invoke(segmenter, tmp_path / "sizes.mjpeg", "--save", tmp_path / "out", "--json")
        assert result.exit_code == 0
        assert [e["size"] for e in lines(result)] == [[48, 64], [20, 90], [64, 48]]
        assert [f.shape for f in open_video(tmp_path / "out" / "sizes.mp4")] == [(48, 64, 3)] * 3

    def test_of_a_live_source_a_frame_is_seen_when_it_was_taken(self, segmenter, opencv, stand_in, videos, tmp_path):
        opencv.cameras[0] = stand_in.Camera(videos.colourful(3), fps=20, endless=True)
        result = invoke(segmenter, "--camera", 0, "--frames", 5, "--save", tmp_path / "out", "--json")
        assert result.exit_code == 0, result.stderr
        last = lines(result)[-1]
        frames = list(open_video(tmp_path / "out" / "camera-0.mp4"))
        assert len(frames) >= max(
            5, round(20 * last["time"]) + 1
        )  # those that were left out are there, as the ones before

    def test_a_classifier_has_nothing_to_save(self, bundle, ride, tmp_path):
        one_error(invoke(bundle, ride, "--save", tmp_path / "out"), "which a bundle for classification does not give")
        assert not (tmp_path / "out").exists()

    def test_a_file_that_cannot_be_written_leaves_the_other_videos(self, segmenter, ride, tmp_path, videos, library):
        (tmp_path / "out" / "ride.mp4").mkdir(parents=True)
        other = videos.write(tmp_path / "other.mp4", videos.colourful(2))
        result = invoke(segmenter, ride, other, "--save", tmp_path / "out", "--json")
        one_error(result, "cannot write", "ride.mp4: Is a directory")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other.mp4", "ride.mp4"]


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], ("IMAGE", "--camera")),
            (["--camera", "front"], ("'front' is no camera", "/dev/video0")),
            (["--camera", "-1"], ("'-1' is no camera",)),
            (["--camera", "0", "--frames", "0"], ("--frames",)),
            (["--camera", "0", "--every", "0"], ("--every",)),
            (["a.png", "--frames", "3"], ("--frames is for videos and cameras",)),
            (["a.png", "--every", "3"], ("--every is for videos and cameras",)),
        ],
    )
    def test_wrong_options_are_one_line(self, segmenter, arguments, words):
        one_error(invoke(segmenter, *arguments), *words)

    def test_a_video_that_cannot_be_read_leaves_the_others(self, segmenter, ride, tmp_path, library):
        (tmp_path / "no.mp4").write_text("no video")
        result = invoke(segmenter, tmp_path / "no.mp4", ride, "--json")
        one_error(result, "no.mp4")
        first, *others = lines(result)
        assert set(first) == {"source", "error"}
        assert len(others) == 12

    def test_a_video_that_is_cut_off_gives_what_there_is(self, segmenter, tmp_path, videos):
        noise = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(30)]
        path = videos.write(tmp_path / "cut.mp4", noise, options={"movflags": "faststart"})
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        result = invoke(segmenter, path, "--json", "--save", tmp_path / "out")
        one_error(result, "cut.mp4 is cut off")
        *entries, last = lines(result)
        assert len(entries) > 5
        assert set(last) == {"source", "error"}
        assert len(list(open_video(tmp_path / "out" / "cut.mp4"))) == len(entries)

    def test_frames_that_the_network_does_not_take(self, bgr_segmenter, tmp_path, videos):
        """Each has its line of JSON; on stderr what is the same is told once, and counted."""
        with (tmp_path / "sizes.mjpeg").open("wb") as file:
            for size in ((48, 64), (20, 90), (20, 90), (48, 64)):
                Image.fromarray(videos.solid("red", *size)).save(file, "JPEG")
        result = invoke(bgr_segmenter, tmp_path / "sizes.mjpeg", "--json", "--save", tmp_path / "out")
        assert result.exit_code == 2
        name = re.escape(str(tmp_path / "sizes.mjpeg"))
        first, count = result.stderr.splitlines()
        assert re.match(rf"error: frame 1 of {name} has 20 x 90 pixels .* takes frames of 48 x 64 only", first)
        assert re.fullmatch(rf"error: 2 frames of {name} were not answered", count)
        good, bad, _, last = lines(result)
        assert (label(good), label(last)) == ("red", "red")
        assert re.match(f"frame 1 of {name} has 20 x 90 pixels", bad["error"])
        assert len(list(open_video(tmp_path / "out" / "sizes.mp4"))) == 4  # it keeps its time

    def test_a_remark_is_told_once(self, detector, ride):
        result = invoke(detector, ride, "--json")
        assert result.exit_code == 0
        assert result.stderr.count("\n") == 1
        assert re.match(r"warning: frame 0 of .*ride\.mp4: some boxes should have been suppressed", result.stderr)

    def test_passwords_are_not_told(self, segmenter):
        result = invoke(segmenter, "rtsp://user:secret@127.0.0.1:1/front", "--json")
        one_error(result, "cannot read rtsp://127.0.0.1:1/front as a video")
        assert "secret" not in result.output
        assert lines(result)[0]["source"] == "rtsp://127.0.0.1:1/front"

    def test_what_an_address_is_saved_as(self, segmenter, monkeypatch, ride, tmp_path):
        monkeypatch.setattr("runtime.cli.answers.open_video", lambda source, *more: open_video(ride, *more))
        for address, name in (
            ("rtsp://u:p@host:8554/live/front%20door", "front-20door"),
            ("rtsp://host:8554", "host-8554"),
        ):
            (entry,) = lines(invoke(segmenter, address, "--frames", 1, "--json", "--save", tmp_path / "out"))
            assert entry["saved"] == str(tmp_path / "out" / f"{name}.mp4")


class TestCamera:
    @pytest.mark.parametrize("argument", ["0", "00"])
    def test_so_many_frames(self, segmenter, opencv, stand_in, videos, argument):
        opencv.cameras[0] = stand_in.Camera(videos.colourful(3), fps=200, endless=True)
        result = invoke(segmenter, "--camera", argument, "--frames", 4, "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        entries = lines(result)
        assert [e["source"] for e in entries] == ["camera 0"] * 4
        assert [label(e) for e in entries] == [("red", "green", "blue")[e["frame"] % 3] for e in entries]
        assert [e["time"] for e in entries] == sorted(e["time"] for e in entries)

    def test_by_its_path(self, segmenter, opencv):
        one_error(invoke(segmenter, "--camera", "/dev/video7"), "cannot open /dev/video7")

    def test_behind_the_images(self, segmenter, opencv, stand_in, videos, tmp_path):
        opencv.cameras[1] = stand_in.Camera(videos.colourful(3), endless=True)
        Image.fromarray(videos.solid("green")).save(tmp_path / "a.png")
        entries = lines(invoke(segmenter, tmp_path / "a.png", "--camera", 1, "--frames", 1, "--json"))
        assert [e.get("source") for e in entries] == [None, "camera 1"]

    def test_one_that_disappears_is_one_line(self, segmenter, opencv, stand_in, videos, tmp_path):
        opencv.cameras[0] = stand_in.Camera(videos.colourful(5), fps=100)
        result = invoke(segmenter, "--camera", 0, "--json", "--save", tmp_path / "out")
        one_error(result, "the camera 0 gives no more frames, after 5: it is unplugged, or has ended")
        *entries, last = lines(result)
        assert entries
        assert set(last) == {"source", "error"}
        assert list(open_video(tmp_path / "out" / "camera-0.mp4"))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_is_one_line_and_leaves_a_whole_video(self, segmenter, tmp_path, stand_in, number):
        code = (
            "import importlib.util, sys, numpy as np\n"
            f"spec = importlib.util.spec_from_file_location('opencv', {stand_in.__file__!r})\n"
            "opencv = importlib.util.module_from_spec(spec); spec.loader.exec_module(opencv)\n"
            "camera = opencv.Camera([np.full((48, 64, 3), 100, np.uint8)], endless=True)\n"
            "sys.modules['cv2'] = cv2 = opencv.OpenCV({0: camera})\n"
            "from runtime.video import libraries; libraries.installed = lambda name: name == 'cv2'\n"
            "from runtime.cli import run\n"
            "try: run()\n"
            "finally: print('alive', len(cv2.alive), cv2.faults)\n"
        )
        command = [sys.executable, "-c", code, str(segmenter), "--camera", "0", "--json"]
        command += ["--save", str(tmp_path / "out")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            first = [json.loads(process.stdout.readline()) for _ in range(3)]
            process.send_signal(number)
            rest, errors = process.communicate(timeout=120)
        assert process.returncode == 130
        assert errors == "error: interrupted\n"
        *entries, end = rest.splitlines()
        assert end == "alive 0 []"
        assert len(list(open_video(tmp_path / "out" / "camera-0.mp4"))) >= len(first) + len(entries)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["camera-0.mp4"]


class TestSources:
    def test_each_kind(self, tmp_path):
        found = list_sources(["a.jpg", "ride.MOV", "rtsp://h/x", "https://h/a.mp4", str(tmp_path)], VideoSource(3))
        assert [s.name for s in found] == [
            "a.jpg",
            "ride.MOV",
            "rtsp://h/x",
            "https://h/a.mp4",
            str(tmp_path),
            "camera 3",
        ]
        assert [isinstance(s, VideoSource) for s in found] == [False, True, True, True, False, True]
        assert [s.is_live for s in found if isinstance(s, VideoSource)] == [False, True, False, True]
        assert isinstance(found[4].error, ImageError)
