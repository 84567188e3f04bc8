import os
import shutil
import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from calib import CalibrationError, ImageStream, find_images, find_labelled_images, images_digest
from runtime.preprocess import Preprocessor


class TestFindImages:
    def test_recursive_sorted_and_visible(self, tmp_path, photo):
        names = ["b/2.png", "a.JPG", "b/10.jpeg", "b-c/1.bmp", "Z/z/z.webp"]
        for name in names:
            photo(tmp_path / name)
        for name in (".hidden.png", ".git/a.png", "b/.thumbs/a.png", "notes.txt", "SOURCES.json", "png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("no image")
        found = find_images(tmp_path)
        assert [p.relative_to(tmp_path).as_posix() for p in found] == sorted(names)
        assert find_images(str(tmp_path)) == found

    def test_sample(self, tmp_path):
        for i in range(20):
            (tmp_path / f"{i:02}.png").touch()
        sample = find_images(tmp_path, 5)
        # Written down, since it must be the same on every machine and in every version.
        assert [p.stem for p in sample] == ["01", "02", "06", "11", "19"]
        assert find_images(tmp_path, 5, seed=1) != sample
        assert set(sample) < set(find_images(tmp_path, 9))
        assert find_images(tmp_path, 20) == find_images(tmp_path, 99) == find_images(tmp_path)

    def test_sample_does_not_depend_on_the_folder(self, tmp_path):
        for folder in ("x", "y/z"):
            (tmp_path / folder).mkdir(parents=True)
            for i in range(9):
                (tmp_path / folder / f"{i}.png").touch()
        assert [p.name for p in find_images(tmp_path / "x", 4)] == [p.name for p in find_images(tmp_path / "y/z", 4)]

    def test_links(self, tmp_path, photo):
        photo(tmp_path / "data" / "a.png")
        root = tmp_path / "root"
        root.mkdir()
        (root / "link").symlink_to(tmp_path / "data")
        (tmp_path / "data" / "loop").symlink_to(root)
        (root / "dangling.png").symlink_to(tmp_path / "nothing")
        assert [p.relative_to(root).as_posix() for p in find_images(root)] == ["dangling.png", "link/a.png"]

    def test_bad_folders(self, tmp_path, photo):
        with pytest.raises(CalibrationError, match=r"no folder .*missing"):
            find_images(tmp_path / "missing")
        with pytest.raises(CalibrationError, match=r"a\.png is not a folder"):
            find_images(photo(tmp_path / "a.png"))
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "a.txt").touch()
        with pytest.raises(CalibrationError, match=r"no image in .*empty.*\.jpg.*\.png"):
            find_images(tmp_path / "empty")

    def test_names_that_no_folder_can_have(self, tmp_path):
        for name in ("a" * 5000, "a\0b"):
            with pytest.raises(CalibrationError, match=r"no folder|cannot read the folder"):
                find_images(tmp_path / name)

    @pytest.mark.parametrize("samples", [0, -1])
    def test_bad_sample(self, tmp_path, photo, samples):
        photo(tmp_path / "a.png")
        with pytest.raises(CalibrationError, match=f"{samples} images"):
            find_images(tmp_path, samples)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
    def test_folder_without_permission(self, tmp_path, photo):
        photo(tmp_path / "b" / "a.png")
        (tmp_path / "b").chmod(0)
        try:
            with pytest.raises(CalibrationError, match="cannot read the folder"):
                find_images(tmp_path)
            with pytest.raises(CalibrationError, match="cannot read the folder"):
                find_labelled_images(tmp_path / "b", ["cat"])
            with pytest.raises(CalibrationError, match="cannot read the folder"):
                find_images(tmp_path / "b" / "c")
        finally:
            (tmp_path / "b").chmod(0o700)


class TestFindLabelledImages:
    def found(self, root, labels):
        return [(p.relative_to(root).as_posix(), i) for p, i in find_labelled_images(root, labels)]

    def test_by_name(self, tmp_path, photo):
        for name in ("dog/2.png", "dog/1.png", "cat/1.png"):
            photo(tmp_path / name)
        (tmp_path / "README.txt").touch()
        (tmp_path / ".cache").mkdir()
        labels = ["cat", "cow", "dog"]
        assert self.found(tmp_path, labels) == [("cat/1.png", 0), ("dog/1.png", 2), ("dog/2.png", 2)]

    def test_by_order(self, tmp_path, photo):
        for name in ("n02", "n01"):
            photo(tmp_path / name / "1.png")
        assert self.found(tmp_path, ["tench", "goldfish"]) == [("n01/1.png", 0), ("n02/1.png", 1)]

    def test_numbers_by_value(self, tmp_path, photo):
        for i in range(11):
            photo(tmp_path / str(i) / "1.png")
        labels = [f"class {i}" for i in range(11)]
        assert self.found(tmp_path, labels) == [(f"{i}/1.png", i) for i in range(11)]

    def test_a_label_twice(self, tmp_path, photo):
        for name in ("crane", "dog"):
            photo(tmp_path / name / "1.png")
        with pytest.raises(CalibrationError, match=r"'crane'.*more than one label"):
            find_labelled_images(tmp_path, ["crane", "dog", "crane"])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["dog", "cow"], "'cat' of .* is not a label"),
            (["a", "b", "c"], "2 folders.*3 labels.*'cat'.*'a'"),
            ([], "no labels"),
        ],
    )
    def test_no_match(self, tmp_path, photo, labels, message):
        for name in ("cat", "dog"):
            photo(tmp_path / name / "1.png")
        with pytest.raises(CalibrationError, match=message):
            find_labelled_images(tmp_path, labels)

    def test_class_without_images(self, tmp_path, photo):
        photo(tmp_path / "cat" / "1.png")
        (tmp_path / "dog").mkdir()
        with pytest.raises(CalibrationError, match=r"no image in .*dog"):
            find_labelled_images(tmp_path, ["cat", "dog"])

    def test_flat_folder(self, tmp_path, photo):
        photo(tmp_path / "1.png")
        with pytest.raises(CalibrationError, match="has no folders"):
            find_labelled_images(tmp_path, ["cat"])


class TestImageStream:
    def test_batches(self, tmp_path, photo, preprocessing):
        paths = [photo(tmp_path / f"{i}.png", seed=i) for i in range(7)]
        stream = ImageStream(paths, preprocessing, batch_size=3)
        batches = list(stream)
        assert [b.shape for b in batches] == [(3, 3, 32, 24), (3, 3, 32, 24), (1, 3, 32, 24)]
        assert {b.dtype for b in batches} == {np.dtype(np.float32)}
        assert len(stream) == 3
        np.testing.assert_array_equal(np.concatenate(batches), [Preprocessor(preprocessing)(p) for p in paths])
        np.testing.assert_array_equal(np.concatenate(list(stream)), np.concatenate(batches))
        assert stream.skipped == ()

    def test_unreadable_files_are_skipped_and_named(self, tmp_path, photo, preprocessing):
        good = [photo(tmp_path / f"{i}.png", seed=i) for i in range(4)]
        truncated = tmp_path / "truncated.png"
        truncated.write_bytes(good[0].read_bytes()[:500])
        text = tmp_path / "text.jpg"
        text.write_text("this is no image")
        empty = tmp_path / "empty.png"
        empty.touch()
        missing = tmp_path / "missing.png"
        folder = tmp_path / "folder.png"
        folder.mkdir()
        bad = [truncated, text, empty, missing, folder]
        stream = ImageStream([*bad[:3], *good, *bad[3:]], preprocessing, batch_size=2)
        assert [len(b) for b in stream] == [2, 2]
        assert [path for path, _ in stream.skipped] == bad
        assert all(path.name in reason for path, reason in stream.skipped)
        list(stream)
        assert len(stream.skipped) == len(bad)

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
    def test_other_kinds_of_pixels(self, tmp_path, photo, preprocessing, mode):
        if mode == "I;16":
            path = tmp_path / "a.png"
            Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50) * 32).save(path)
        else:
            path = photo(tmp_path / "a.png", mode=mode)
        (batch,) = ImageStream([path], preprocessing)
        np.testing.assert_array_equal(batch[0], Preprocessor(preprocessing)(path))

    def test_decompression_bomb(self, tmp_path, photo, preprocessing, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        paths = [photo(tmp_path / "bomb.png")]
        with pytest.raises(CalibrationError, match=r"none of the 1 images .*bomb\.png"):
            list(ImageStream(paths, preprocessing))

    def test_none_readable(self, tmp_path, preprocessing):
        for i in range(3):
            (tmp_path / f"{i}.png").write_text("no image")
        stream = ImageStream(find_images(tmp_path), preprocessing, batch_size=2)
        with pytest.raises(CalibrationError, match=r"none of the 3 images is readable.*0\.png"):
            list(stream)
        assert len(stream.skipped) == 3

    def test_misuse(self, tmp_path, photo, preprocessing):
        with pytest.raises(CalibrationError, match="no images"):
            ImageStream([], preprocessing)
        with pytest.raises(CalibrationError, match="batches of 0"):
            ImageStream([photo(tmp_path / "a.png")], preprocessing, batch_size=0)

    def test_leaving_early_ends_the_reader(self, tmp_path, photo, preprocessing):
        paths = [photo(tmp_path / "a.png")] * 9
        batches = iter(ImageStream(paths, preprocessing, batch_size=1))
        next(batches)
        batches.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("images")]

    def test_memory_does_not_grow(self, tmp_path, photo, preprocessing):
        path = photo(tmp_path / "a.png")

        def peak(count):
            tracemalloc.start()
            try:
                for _ in ImageStream([path] * count, preprocessing, batch_size=4):
                    pass
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak(8)  # what is imported on first use
        assert peak(160) - peak(16) < 200_000  # all of them would be 1.3 MB


class TestImagesDigest:
    def test_contents_only(self, tmp_path, photo):
        paths = [photo(tmp_path / "x" / f"{i}.png", seed=i) for i in range(3)]
        digest = images_digest(paths)
        assert len(digest) == 64
        assert int(digest, 16)
        moved = [shutil.copy(p, tmp_path / f"{9 - i}.png") for i, p in enumerate(paths)]
        assert images_digest([tmp_path / m for m in sorted(moved)]) == digest

    def test_any_change_shows(self, tmp_path, photo):
        paths = [photo(tmp_path / f"{i}.png", seed=i) for i in range(3)]
        digests = {images_digest(paths), images_digest(paths[:2]), images_digest([*paths, paths[0]]), images_digest([])}
        with paths[1].open("ab") as f:
            f.write(b"\0")
        digests.add(images_digest(paths))
        paths[2].unlink()
        digests.add(images_digest(paths))
        assert len(digests) == 6

    def test_is_stable(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).write_text(name)
        digest = images_digest([tmp_path / "a", tmp_path / "b"])
        assert digest == "60dd9ead01382afe39c9ece9b571a8fcb6a253ba24d567fc92db44d38df5e9f0"
