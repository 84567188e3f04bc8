"""Box operators against float64 references that take one pair at a time, straight from the formulas."""

import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from holocron import ops
from holocron.ops.boxes import aspect_ratio_consistency, box_ciou, box_giou, ciou_loss, diou_loss, iou_penalty

FUNCTIONS = {f.__name__: f for f in (box_giou, diou_loss, ciou_loss, box_ciou, iou_penalty, aspect_ratio_consistency)}


def ratio(a, b):
    return a / b if b > 0 else 0.0


def pair(a, b):
    """Every quantity of one pair of boxes."""
    wa, ha, wb, hb = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = wa * ha + wb * hb - w * h
    iou = ratio(w * h, union)
    cw, ch = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    giou = iou - ratio(cw * ch - union, cw * ch)
    rho = ((a[0] + a[2]) / 2 - (b[0] + b[2]) / 2) ** 2 + ((a[1] + a[3]) / 2 - (b[1] + b[3]) / 2) ** 2
    penalty = ratio(rho, cw**2 + ch**2)
    v = 4 / math.pi**2 * (math.atan2(wa, ha) - math.atan2(wb, hb)) ** 2
    alpha = ratio(v, 1 - iou + v)
    return {
        "box_giou": giou,
        "diou_loss": 1 - iou + penalty,
        "ciou_loss": 1 - iou + penalty + alpha * v,
        "box_ciou": iou - penalty - alpha * v,
        "iou_penalty": penalty,
        "aspect_ratio_consistency": v,
    }


def reference(name, boxes1, boxes2):
    rows = [[pair(a, b)[name] for b in boxes2.double().tolist()] for a in boxes1.double().tolist()]
    return np.array(rows).reshape(len(boxes1), len(boxes2))


# Small integers make boxes coincide, touch, contain each other and lose their area often.
COORDINATES = st.one_of(st.integers(-3, 3).map(float), st.floats(-100, 100, width=32))


@st.composite
def box_sets(draw, max_size=4):
    box = st.tuples(COORDINATES, COORDINATES, COORDINATES, COORDINATES).map(
        lambda c: [min(c[0], c[1]), min(c[2], c[3]), max(c[0], c[1]), max(c[2], c[3])]
    )
    boxes = st.lists(box, max_size=max_size).map(lambda rows: torch.tensor(rows, dtype=torch.float64).view(-1, 4))
    return draw(boxes), draw(boxes)


def random_boxes(n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 2, 2, generator=generator, dtype=torch.float64) * 10
    return torch.cat([corners.amin(1), corners.amax(1) + 0.1], dim=1).to(dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(sets=box_sets())
def test_equals_formula(name, sets):
    out = FUNCTIONS[name](*sets)
    assert out.shape == (len(sets[0]), len(sets[1]))
    np.testing.assert_allclose(out.numpy(), reference(name, *sets), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(sets=box_sets(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_gradients_are_finite_everywhere(name, sets, dtype):
    boxes1, boxes2 = (boxes.to(dtype).requires_grad_() for boxes in sets)
    FUNCTIONS[name](boxes1, boxes2).sum().backward()
    for boxes in (boxes1, boxes2):
        if boxes.grad is not None:
            assert boxes.grad.isfinite().all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient(name):
    boxes1, boxes2 = random_boxes(4).requires_grad_(), random_boxes(3, seed=1).requires_grad_()
    assert gradcheck(FUNCTIONS[name], (boxes1, boxes2))


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(sets=box_sets())
def test_bounds_and_symmetry(name, sets):
    out = FUNCTIONS[name](*sets)
    low, high = {
        "box_giou": (-1, 1),
        "diou_loss": (0, 2),
        "ciou_loss": (0, 3),
        "box_ciou": (-2, 1),
        "iou_penalty": (0, 1),
        "aspect_ratio_consistency": (0, 1),
    }[name]
    assert ((out >= low - 1e-9) & (out <= high + 1e-9)).all()
    torch.testing.assert_close(out.T, FUNCTIONS[name](sets[1], sets[0]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sets=box_sets(), factor=st.sampled_from([0.01, 7.0]), shift=st.floats(-50, 50))
def test_scale_and_position_do_not_matter(sets, factor, shift):
    # Degenerate boxes are left out: after rounding they may not be degenerate any more.
    boxes1, boxes2 = (boxes[((boxes[:, 2:] - boxes[:, :2]) > 1e-3).all(1)] for boxes in sets)
    for function in FUNCTIONS.values():
        torch.testing.assert_close(
            function(factor * boxes1 + shift, factor * boxes2 + shift), function(boxes1, boxes2), rtol=1e-6, atol=1e-6
        )


def test_a_box_and_itself():
    boxes = random_boxes(5, dtype=torch.float32)
    torch.testing.assert_close(box_giou(boxes, boxes).diagonal(), torch.ones(5))
    torch.testing.assert_close(box_ciou(boxes, boxes).diagonal(), torch.ones(5))
    for loss in (diou_loss, ciou_loss):
        assert loss(boxes, boxes).diagonal().abs().max() == 0


def test_agrees_with_torchvision():
    boxes1, boxes2 = random_boxes(6), random_boxes(6, seed=3)
    torch.testing.assert_close(box_giou(boxes1, boxes2), torchvision.ops.generalized_box_iou(boxes1, boxes2))
    torch.testing.assert_close(1 - diou_loss(boxes1, boxes2), torchvision.ops.distance_box_iou(boxes1, boxes2))
    torch.testing.assert_close(box_ciou(boxes1, boxes2), torchvision.ops.complete_box_iou(boxes1, boxes2))


def test_ciou_adds_the_aspect_ratio_term_that_diou_lacks():
    boxes1, boxes2 = torch.tensor([[0.0, 0, 4, 1]]), torch.tensor([[0.0, 0, 1, 4]])
    v = 4 / math.pi**2 * (math.atan(4) - math.atan(1 / 4)) ** 2
    iou = 1 / 7
    difference = ciou_loss(boxes1, boxes2) - diou_loss(boxes1, boxes2)
    torch.testing.assert_close(difference.item(), v * v / (1 - iou + v), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "box", [[0.0, 0, 0, 0], [1.0, 2, 1, 5], [1.0, 2, 4, 2], [0.0, 0, 1e-30, 1e-30], [0.0, 0, 1e15, 1e15]], ids=str
)
@pytest.mark.parametrize("other", [[0.0, 0, 0, 0], [1.0, 2, 4, 2], [0.0, 0, 2, 2], [0.0, 0, 1e-30, 1]], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_degenerate_boxes_in_float32(name, box, other):
    boxes1, boxes2 = torch.tensor([box], requires_grad=True), torch.tensor([other], requires_grad=True)
    out = FUNCTIONS[name](boxes1, boxes2)
    assert out.isfinite().all()
    out.sum().backward()
    assert boxes1.grad.isfinite().all()
    assert boxes2.grad.isfinite().all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_types(name):
    boxes1, boxes2 = torch.tensor([[0, 0, 300, 200], [10, 20, 30, 40]]), torch.tensor([[5, 5, 400, 100]])
    expected = FUNCTIONS[name](boxes1.double(), boxes2.double())
    for dtype in (torch.int32, torch.int64, torch.float16, torch.float32):
        out = FUNCTIONS[name](boxes1.to(dtype), boxes2.to(dtype))
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    assert FUNCTIONS[name](boxes1, boxes2.double()).dtype == torch.float64
    # Unsigned differences would wrap around.
    small = torch.tensor([[0, 0, 30, 20]], dtype=torch.uint8)
    torch.testing.assert_close(FUNCTIONS[name](small, small.flip(0)), FUNCTIONS[name](small.float(), small.float()))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sets_may_be_empty(name):
    boxes = random_boxes(3).requires_grad_()
    empty = torch.zeros(0, 4, dtype=torch.float64)
    assert FUNCTIONS[name](boxes, empty).shape == (3, 0)
    assert FUNCTIONS[name](empty, boxes).shape == (0, 3)
    assert FUNCTIONS[name](empty, empty).shape == (0, 0)
    FUNCTIONS[name](boxes, empty).sum().backward()
    assert boxes.grad.eq(0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4)])
def test_shapes_are_checked(name, shape):
    with pytest.raises(ValueError, match="boxes2"):
        FUNCTIONS[name](torch.zeros(1, 4), torch.zeros(shape))


def test_giou_refuses_inverted_boxes_and_the_others_count_them_as_empty():
    inverted = torch.tensor([[0.0, 0, 1, 1], [3.0, 0, 1, 2]], requires_grad=True)
    box = torch.tensor([[0.0, 0, 2, 2]])
    with pytest.raises(AssertionError, match=r"boxes1.*\[3.0, 0.0, 1.0, 2.0\]"):
        box_giou(inverted, box)
    with pytest.raises(AssertionError, match="boxes2"):
        box_giou(box, inverted)
    for loss in (diou_loss, ciou_loss):
        out = loss(inverted, box)
        assert out[1] >= 1
        out.sum().backward()
        assert inverted.grad.isfinite().all()


def test_package_exports_the_operators():
    for name, function in FUNCTIONS.items():
        assert getattr(ops, name) is function
