from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv2
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode

from holocron.transforms import RandomZoomOut, Resize, ResizeMethod

NUMPY_KWARGS = {"constant": {"constant_values": 0}, "edge": {}, "reflect": {}, "symmetric": {}}


def photo(height, width, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return generator.integers(0, 256, shape, dtype=np.uint8)


def expected_pad(array, size, pad_mode, resample=Image.Resampling.BILINEAR):
    """The documented scheme with exact fractions, Pillow and np.pad."""
    height, width = array.shape[:2]
    scale = min(Fraction(size[0], height), Fraction(size[1], width))
    new_h = max(1, floor(height * scale + Fraction(1, 2)))
    new_w = max(1, floor(width * scale + Fraction(1, 2)))
    resized = np.asarray(Image.fromarray(array).resize((new_w, new_h), resample))
    top, left = (size[0] - new_h) // 2, (size[1] - new_w) // 2
    border = [(top, size[0] - new_h - top), (left, size[1] - new_w - left)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(resized, border, mode=pad_mode, **NUMPY_KWARGS[pad_mode])


def test_resize_method():
    assert ResizeMethod("squish") is ResizeMethod.SQUISH
    assert ResizeMethod.PAD == "pad"


@pytest.mark.parametrize("size", [224, (224,), (224, 0), (224, -1), (224, 224, 3), (2.0, 2), (True, 2), None, "ab"])
def test_resize_refuses_size(size):
    with pytest.raises(ValueError, match="2 positive integers"):
        Resize(size)
    with pytest.raises(ValueError, match="2 positive integers"):
        RandomZoomOut(size)


def test_resize_refuses_other_arguments():
    with pytest.raises(TypeError, match="ResizeMethod"):
        Resize((8, 8), mode="pad")
    with pytest.raises(ValueError, match="wrap"):
        Resize((8, 8), mode=ResizeMethod.PAD, pad_mode="wrap")
    with pytest.raises(ValueError, match="max_size"):
        Resize((8, 8), max_size=16)
    with pytest.raises(TypeError):
        Resize((8, 8), unknown=1)


@pytest.mark.parametrize("interpolation", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, "nearest"])
def test_squish_is_torchvision(interpolation):
    image = Image.fromarray(photo(17, 40))
    reference = tv2.Resize((32, 24), interpolation=interpolation)
    transform = Resize((32, 24), interpolation=interpolation)
    assert isinstance(transform, tv2.Resize)
    assert np.array_equal(np.asarray(transform(image)), np.asarray(reference(image)))
    tensor = torch.from_numpy(photo(17, 40)).permute(2, 0, 1)
    assert torch.equal(transform(tensor), reference(tensor))


@pytest.mark.parametrize("pad_mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize("size", [(32, 32), (31, 48), (48, 7), (1, 1)])
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (33, 33), (200, 3), (1, 1), (1, 64)])
def test_pad_on_pil_is_numpy(shape, size, pad_mode):
    array = photo(*shape)
    out = Resize(size, ResizeMethod.PAD, pad_mode)(Image.fromarray(array))
    assert out.mode == "RGB"
    assert np.array_equal(np.asarray(out), expected_pad(array, size, pad_mode))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 50),
    st.integers(1, 50),
    st.sampled_from(["constant", "edge", "reflect", "symmetric"]),
)
def test_pad_any_size(height, width, target_h, target_w, pad_mode):
    array = photo(height, width)
    out = Resize((target_h, target_w), ResizeMethod.PAD, pad_mode)(Image.fromarray(array))
    assert np.array_equal(np.asarray(out), expected_pad(array, (target_h, target_w), pad_mode))


@pytest.mark.parametrize("pad_mode", ["constant", "edge", "reflect", "symmetric"])
def test_pad_nearest_equals_on_pil_and_tensor(pad_mode):
    # A tenth of the width: the border is reflected several times.
    array = photo(40, 4)
    transform = Resize((40, 40), ResizeMethod.PAD, pad_mode, interpolation="nearest")
    from_pil = np.asarray(transform(Image.fromarray(array)))
    from_tensor = transform(torch.from_numpy(array).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.array_equal(from_pil, from_tensor)
    assert np.array_equal(from_pil, expected_pad(array, (40, 40), pad_mode, Image.Resampling.NEAREST))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_pad_tensors_of_any_batch(dtype, lead):
    image = torch.arange(1, 121, dtype=dtype).reshape(1, 10, 12).expand(*lead, 3, 10, 12)
    out = Resize((20, 20), ResizeMethod.PAD)(image)
    assert out.shape == (*lead, 3, 20, 20)
    assert out.dtype == dtype
    content = tv2.functional.resize(image, [17, 20])
    assert torch.equal(out[..., 1:18, :], content)
    assert not out[..., :1, :].any()
    assert not out[..., 18:, :].any()


def test_antialias_is_honoured():
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    smooth = Resize((8, 16), ResizeMethod.PAD, antialias=True)(image)
    rough = Resize((8, 16), ResizeMethod.PAD, antialias=False)(image)
    assert torch.equal(rough[:, :, 4:12], tv2.functional.resize(image, [8, 8], antialias=False))
    assert not torch.allclose(smooth, rough)


@pytest.mark.parametrize(
    ("mode", "pad_mode"),
    list(product(["L", "1", "P", "RGBA", "CMYK", "LA", "I", "F", "I;16"], ["constant", "symmetric"])),
)
def test_pad_pil_modes(mode, pad_mode):
    base = Image.fromarray(photo(12, 20))
    image = Image.fromarray(photo(12, 20, 1).astype(np.uint16) * 200) if mode == "I;16" else base.convert(mode)
    out = Resize((32, 40), ResizeMethod.PAD, pad_mode, interpolation="nearest")(image)
    assert out.mode == mode
    assert out.size == (40, 32)
    inner = np.asarray(out)[4:28]
    assert np.array_equal(inner, np.asarray(image.resize((40, 24), Image.Resampling.NEAREST)))
    if mode == "P":
        assert out.getpalette() == image.getpalette()


def test_pad_sample_with_boxes_and_mask():
    sample = {
        "image": tv_tensors.Image(torch.ones(3, 10, 20)),
        "mask": tv_tensors.Mask(torch.ones(10, 20, dtype=torch.int64)),
        "boxes": tv_tensors.BoundingBoxes([[0, 0, 20, 10]], format="XYXY", canvas_size=(10, 20)),
        "label": 3,
    }
    out = Resize((40, 40), ResizeMethod.PAD, "edge")(sample)
    assert isinstance(out["image"], tv_tensors.Image)
    assert isinstance(out["mask"], tv_tensors.Mask)
    assert out["image"].shape == (3, 40, 40)
    assert out["mask"].shape == (40, 40)
    assert out["boxes"].tolist() == [[0, 10, 40, 30]]
    assert out["boxes"].canvas_size == (40, 40)
    assert out["label"] == 3


def test_resize_repr_and_pickle():
    transform = Resize((8, 16), ResizeMethod.PAD, "reflect")
    assert "pad_mode=reflect" in repr(transform)
    assert transform.size == (8, 16)


@pytest.mark.parametrize(
    "scale", [(1.0, 0.5), (0.5,), (0.1, 0.2, 0.3), (0.0, 1.0), (0.5, 1.5), (float("nan"), 1.0), 0.5]
)
def test_zoom_out_refuses_scale(scale):
    with pytest.raises(ValueError, match="scale"):
        RandomZoomOut((8, 8), scale)


@pytest.mark.parametrize("shape", [(40, 40), (30, 45), (90, 10)])
@pytest.mark.parametrize("scale", [(0.25, 0.25), (0.3, 0.9), (1.0, 1.0)])
def test_zoom_out(shape, scale):
    torch.manual_seed(0)
    size = (60, 80)
    transform = RandomZoomOut(size, scale)
    for _ in range(5):
        out = transform(Image.new("RGB", (shape[1], shape[0]), (255, 255, 255)))
        assert out.size == (80, 60)
        ys, xs = np.nonzero(np.asarray(out)[..., 0])
        height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
        # centred, in the image's aspect ratio, of the area asked for where there is room
        assert abs((ys.min() + ys.max()) - (size[0] - 1)) <= 1
        assert abs((xs.min() + xs.max()) - (size[1] - 1)) <= 1
        assert abs(height * shape[1] - width * shape[0]) <= max(shape)
        if height < size[0] and width < size[1]:
            assert scale[0] * 0.93 <= height * width / (60 * 80) <= scale[1] * 1.07
        else:
            assert height == size[0] or width == size[1]


def test_zoom_out_tensor_and_kwargs():
    image = torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
    out = RandomZoomOut((16, 16), (0.25, 0.25), interpolation=InterpolationMode.NEAREST)(image)
    assert out.shape == (2, 3, 16, 16)
    assert out.dtype == torch.uint8
    assert out[..., 4:12, 4:12].eq(7).all()
    assert out.sum() == 7 * 2 * 3 * 64


def test_zoom_out_follows_the_torch_seed():
    image = torch.ones(1, 20, 20)
    transform = RandomZoomOut((40, 40), (0.05, 1.0))
    torch.manual_seed(3)
    first = [transform(image) for _ in range(3)]
    torch.manual_seed(3)
    assert all(torch.equal(transform(image), other) for other in first)
    assert not torch.equal(first[0], first[1])
