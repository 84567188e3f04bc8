import threading
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from holocron.utils import find_image_size, parallel

mpl.use("Agg")


@pytest.mark.parametrize("num_threads", [None, 0, 1, 2, 8])
@pytest.mark.parametrize("progress", [True, False])
def test_parallel_is_an_ordered_map(num_threads, progress, capsys):
    result = parallel(lambda value: value**2, list(range(50)), num_threads, progress, desc="squares")
    assert list(result) == [value**2 for value in range(50)]
    assert ("squares" in capsys.readouterr().err) == progress


@pytest.mark.parametrize("num_threads", [1, 4])
def test_parallel_of_nothing_and_of_errors(num_threads):
    assert list(parallel(str, [], num_threads)) == []
    with pytest.raises(ZeroDivisionError):
        list(parallel(lambda value: 1 / value, [1, 0, 2], num_threads))


def test_parallel_threads():
    # Each waits for the other: this only ends where they run at the same time.
    barrier = threading.Barrier(2, timeout=10)
    parallel(lambda _: barrier.wait(), [0, 1], num_threads=2)
    caller = threading.get_ident()
    assert list(parallel(lambda _: threading.get_ident(), [0, 1], num_threads=1)) == [caller] * 2


@pytest.mark.parametrize("lazy", [True, False])
def test_find_image_size(monkeypatch, lazy):
    # (width, height); the sides are 20, 30 and 60, the ratios 1, 4 and 9
    sizes = [(20, 20), (15, 60), (20, 180)]

    class Lazy:
        """As a PyTorch dataset: no iteration, and no IndexError past its end."""

        def __len__(self):
            return len(sizes)

        def __getitem__(self, index):
            return Image.new("L", sizes[index]), index

    calls = []
    monkeypatch.setattr(plt, "show", lambda **kwargs: calls.append(kwargs))
    find_image_size(Lazy() if lazy else [(Image.new("L", size), 0) for size in sizes], block=False)
    assert calls == [{"block": False}]
    figure = plt.gcf()
    assert figure.get_suptitle() == "Median image size: (60, 15)"
    assert [axis.get_title() for axis in figure.axes] == ["Aspect ratio (median: 4.00)", "Side (median: 30)"]
    assert sum(np.sum([patch.get_height() for patch in axis.patches]) for axis in figure.axes) == 6
    plt.close("all")


def test_find_image_size_of_nothing():
    with pytest.raises(ValueError, match="empty"):
        find_image_size([])


def test_matplotlib_is_imported_when_something_is_plotted(run_python):
    run_python("import sys, holocron.utils, holocron.trainer; assert 'matplotlib' not in sys.modules")


@pytest.fixture
def run_python():
    import subprocess
    import sys

    def run(code):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])

    return run
