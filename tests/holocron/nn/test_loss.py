"""Losses against float64 references written from the papers' formulas, and against PyTorch where they meet it."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from holocron import nn
from holocron.nn import functional as F

INDEX_LOSSES = {
    "focal": F.focal_loss,
    "poly": F.poly_loss,
    "complement": F.complement_cross_entropy,
}


def softmax(x, axis=0):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def focal_reference(logits, label, gamma):
    p = softmax(logits)[label]
    return -((1 - p) ** gamma) * np.log(p)


def poly_reference(logits, label, eps):
    p = softmax(logits)[label]
    return -np.log(p) + eps * (1 - p)


def complement_reference(logits, label, gamma):
    p = softmax(logits)
    wrong = np.delete(p, label)
    wrong = wrong / wrong.sum()  # 1 - p_t, without its cancellation
    return -np.log(p[label]) + gamma / (len(p) - 1) * -(wrong * np.log(wrong)).sum()


REFERENCES = {
    "focal": (focal_reference, "gamma", 2.0),
    "poly": (poly_reference, "eps", 2.0),
    "complement": (complement_reference, "gamma", -1.0),
}


def reduced_reference(name, x, target, weight, ignore_index, reduction, param):
    """Position by position, in float64."""
    x, target = x.double().numpy(), target.numpy()
    losses, scales = np.zeros(target.shape), np.zeros(target.shape)
    for position in np.ndindex(*target.shape):
        label = target[position]
        if label == ignore_index:
            continue
        logits = x[(position[0], slice(None), *position[1:])]
        scales[position] = 1 if weight is None else weight[label]
        losses[position] = scales[position] * REFERENCES[name][0](logits, label, param)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (scales.sum() or 1)


@st.composite
def classification(draw):
    """Logits, class indices with some ignored, and maybe weights."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    num_classes = draw(st.integers(2, 5))
    spatial = draw(st.lists(st.integers(1, 3), max_size=2))
    batch = draw(st.integers(1, 4))
    x = draw(st.sampled_from([0.1, 1.0, 10.0])) * torch.randn(batch, num_classes, *spatial, dtype=torch.float64)
    target = torch.randint(num_classes, (batch, *spatial))
    ignore_index = draw(st.sampled_from([-100, 255, 0, 1]))
    if ignore_index not in range(num_classes):
        target[torch.rand(target.shape) < 0.3] = ignore_index
    weight = torch.rand(num_classes, dtype=torch.float64) + 0.1 if draw(st.booleans()) else None
    return x, target, weight, ignore_index, draw(st.sampled_from(["none", "mean", "sum"]))


@pytest.mark.parametrize("name", INDEX_LOSSES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=classification(), param=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]))
def test_index_loss_equals_formula(name, case, param):
    x, target, weight, ignore_index, reduction = case
    _, keyword, _ = REFERENCES[name]
    loss = INDEX_LOSSES[name](
        x, target, weight=weight, ignore_index=ignore_index, reduction=reduction, **{keyword: param}
    )
    expected = reduced_reference(name, x, target, weight, ignore_index, reduction, param)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", INDEX_LOSSES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=classification())
def test_without_its_own_term_it_is_the_cross_entropy(name, case):
    x, target, weight, ignore_index, reduction = case
    _, keyword, _ = REFERENCES[name]
    loss = INDEX_LOSSES[name](
        x, target, weight=weight, ignore_index=ignore_index, reduction=reduction, **{keyword: 0.0}
    )
    expected = nnf.cross_entropy(x, target, weight, ignore_index=ignore_index, reduction=reduction)
    torch.testing.assert_close(loss, expected.nan_to_num())


@pytest.mark.parametrize("name", INDEX_LOSSES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=classification())
def test_index_loss_gradient(name, case):
    x, target, weight, ignore_index, reduction = case
    x = (x / x.abs().amax().clamp(min=1)).requires_grad_()
    call = INDEX_LOSSES[name]
    assert gradcheck(lambda x: call(x, target, weight=weight, ignore_index=ignore_index, reduction=reduction), x)


@pytest.mark.parametrize("name", INDEX_LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (2, 4, 3, 3)])
def test_nothing_to_learn_from_is_zero(name, reduction, shape):
    x = torch.randn(shape, requires_grad=True)
    target = torch.full((shape[0], *shape[2:]), 255)
    loss = INDEX_LOSSES[name](x, target, weight=torch.ones(4), ignore_index=255, reduction=reduction)
    loss.sum().backward()
    assert loss.eq(0).all()
    assert x.grad.eq(0).all()


@pytest.mark.parametrize("name", INDEX_LOSSES)
def test_classes_of_weight_zero_do_not_count(name):
    x, target = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    loss = INDEX_LOSSES[name](x, target, weight=torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(loss, INDEX_LOSSES[name](x[2:], target[2:]))
    assert INDEX_LOSSES[name](x[:2], target[:2], weight=torch.tensor([0.0, 1.0, 1.0])) == 0


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize("name", ["focal", "complement"])
def test_saturated_predictions_have_finite_gradients(name, gamma, scale):
    x = (scale * torch.eye(3)).requires_grad_()
    for target in (torch.arange(3), torch.tensor([1, 2, 0])):
        loss = INDEX_LOSSES[name](x, target, gamma=gamma)
        (grad,) = torch.autograd.grad(loss, x)
        assert loss.isfinite()
        assert grad.isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", ["focal", "poly"])
def test_probability_targets(name, reduction, weighted):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    target = torch.rand(4, 3, 2, dtype=torch.float64).softmax(1)
    weight = torch.rand(3, dtype=torch.float64) if weighted else None
    _, keyword, _ = REFERENCES[name]
    off = INDEX_LOSSES[name](x, target, weight=weight, reduction=reduction, **{keyword: 0.0})
    torch.testing.assert_close(off, nnf.cross_entropy(x, target, weight, reduction=reduction))
    one_hot = nnf.one_hot(torch.tensor([0, 2, 1, 1]), 3).double()
    index = torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(
        INDEX_LOSSES[name](x[..., 0], one_hot, reduction=reduction),
        INDEX_LOSSES[name](x[..., 0], index, reduction=reduction),
    )
    assert gradcheck(lambda x: INDEX_LOSSES[name](x, target, weight=weight, reduction=reduction), x)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=classification(), multi_hot=st.booleans())
def test_multilabel_equals_formula(case, multi_hot):
    x, _, weight, ignore_index, reduction = case
    target = torch.rand(x.shape, dtype=torch.float64)
    target = target.round() if multi_hot else target.softmax(1)
    if ignore_index < 0:
        target[torch.rand(x.shape) < 0.2] = ignore_index
    loss = F.multilabel_cross_entropy(x, target, weight, ignore_index, reduction)

    logp = np.log(softmax(x.numpy(), axis=1))
    kept = np.ones(x.shape, bool)
    if 0 <= ignore_index < x.shape[1]:
        kept[:, ignore_index] = False
    else:
        kept = target.numpy() != ignore_index
    w = np.ones(x.shape[1]) if weight is None else weight.numpy()
    terms = -np.where(kept, target.numpy() * logp, 0) * w.reshape(-1, *[1] * (x.ndim - 2))
    expected = terms.sum(1)
    if reduction != "none":
        expected = expected.sum() / (max(kept.any(1).sum(), 1) if reduction == "mean" else 1)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_multilabel_of_one_label_is_the_cross_entropy():
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 1, 2, 3, 1])
    loss = F.multilabel_cross_entropy(x, nnf.one_hot(index, 4))
    torch.testing.assert_close(loss, nnf.cross_entropy(x, index))
    assert gradcheck(lambda x: F.multilabel_cross_entropy(x, nnf.one_hot(index, 4), torch.arange(4.0)), x)
    ignored = F.multilabel_cross_entropy(x, torch.full((5, 4), -100))
    assert ignored == 0


def mutual_channel_reference(x, label, mask, xi, alpha):
    """One sample of shape (K * xi, H, W), term by term."""
    num_classes = x.shape[0] // xi
    pooled, diversity = [], 0
    for k in range(num_classes):
        channels = x[k * xi : (k + 1) * xi].reshape(xi, -1)
        pooled.append(np.mean(np.max(channels * mask[k][:, None], axis=0)))
        diversity += np.sum(np.max(softmax(channels, axis=1), axis=0)) / num_classes
    return -np.log(softmax(np.array(pooled))[label]) - alpha * diversity


@pytest.mark.parametrize("xi", [1, 2, 3])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_mutual_channel_equals_formula(xi, reduction):
    torch.manual_seed(xi)
    x = torch.randn(3, 4 * xi, 2, 2, dtype=torch.float64, requires_grad=True)
    target, weight = torch.tensor([1, 3, 2]), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)

    def loss(x):
        torch.manual_seed(7)
        return F.mutual_channel_loss(x, target, weight, 3, reduction, xi, alpha=0.5)

    torch.manual_seed(7)
    mask = (torch.rand(4, xi).argsort(1) >= xi // 2).numpy()
    assert (mask.sum(1) == xi - xi // 2).all()
    scales = np.where(target == 3, 0, weight[target])
    losses = [mutual_channel_reference(s, t, mask, xi, 0.5) for s, t in zip(x.detach().numpy(), target, strict=True)]
    expected = scales * np.array(losses)
    if reduction != "none":
        expected = expected.sum() / (scales.sum() if reduction == "mean" else 1)
    np.testing.assert_allclose(loss(x).detach().numpy(), expected, rtol=1e-9)
    if reduction == "mean":
        assert gradcheck(loss, x)


def test_mutual_channel_is_deterministic_in_eval_mode():
    criterion = nn.MutualChannelLoss(xi=4)
    x, target = torch.randn(8, 12, 3, 3), torch.arange(8) % 3
    assert len({criterion(x, target).item() for _ in range(10)}) > 1
    criterion.eval()
    assert criterion(x, target) == criterion(x, target)
    # Each channel's softmax sums to one over the image: between 1 (all alike) and xi (all apart) per class.
    alike = torch.zeros(1, 12, 3, 3)
    torch.testing.assert_close(criterion(alike, torch.tensor([0])), torch.tensor(np.log(3) - 1).float())


def dice_reference(probs, truth, gamma, eps):
    return np.array(
        [
            1 - ((1 + gamma) * (p * g).sum() + eps) / ((p**2).sum() + gamma * (g**2).sum() + eps)
            for p, g in zip(probs.swapaxes(0, 1), truth.swapaxes(0, 1), strict=True)
        ]
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=classification(), gamma=st.sampled_from([0.5, 1.0, 2.0]), dense=st.booleans())
def test_dice_equals_formula(case, gamma, dense):
    x, target, weight, ignore_index, reduction = case
    probs = x.softmax(1)
    num_classes = x.shape[1]
    kept = (target != ignore_index).unsqueeze(1)
    one_hot = nnf.one_hot(target.where(kept.squeeze(1), 0), num_classes).movedim(-1, 1).double()
    if dense:
        kept = torch.ones_like(kept)
    given_target = one_hot if dense else target
    loss = F.dice_loss(probs, given_target, weight, gamma, 1e-8, ignore_index, reduction)
    classes = dice_reference((probs * kept).numpy(), (one_hot * kept).numpy(), gamma, 1e-8)
    w = np.ones(num_classes) if weight is None else weight.numpy()
    expected = {"none": w * classes, "sum": (w * classes).sum(), "mean": (w * classes).sum() / w.sum()}[reduction]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_dice_limits():
    index = torch.tensor([[[0, 1], [1, 1]]])
    perfect = nnf.one_hot(index, 3).movedim(-1, 1).float()
    assert F.dice_loss(perfect, index) == 0  # class 2 is neither predicted nor there
    assert F.dice_loss(perfect.flip(1)[:, [1, 2, 0]], index) > 0.6
    assert F.dice_loss(perfect, torch.full_like(index, 255), ignore_index=255) == 0
    assert F.dice_loss(torch.zeros(0, 3, 2, 2), torch.zeros(0, 2, 2, dtype=torch.long)) == 0
    # Binary predictions: one minus the F-measure.
    pred, truth = torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[1.0, 0, 0, 1]])
    precision, recall = 1 / 3, 1 / 2
    for gamma in (0.5, 1.0, 4.0):
        f_measure = (1 + gamma) * precision * recall / (gamma * precision + recall)
        loss = F.dice_loss(pred.unsqueeze(0), truth.unsqueeze(0), gamma=gamma)
        torch.testing.assert_close(loss.item(), 1 - f_measure)
    probs = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(
        lambda p: F.dice_loss(p, torch.tensor([[0, 1, 2, -100]] * 2), torch.tensor([1.0, 2, 3]), 1.5), probs
    )


def test_dice_in_half_precision_does_not_overflow():
    probs = torch.full((1, 2, 600, 600), 0.5, dtype=torch.float16)
    target = torch.zeros(1, 600, 600, dtype=torch.long)
    assert F.dice_loss(probs, target).isfinite()


FUNCTIONAL_CALLS = {
    **INDEX_LOSSES,
    "multilabel": lambda x, target, **kwargs: F.multilabel_cross_entropy(x, torch.rand(x.shape), **kwargs),
    "dice": lambda x, target, **kwargs: F.dice_loss(x.softmax(1), target, **kwargs),
    "mutual": lambda x, target, **kwargs: F.mutual_channel_loss(x.unsqueeze(-1).repeat(1, 2, 3), target, **kwargs),
}


@pytest.mark.parametrize("name", FUNCTIONAL_CALLS)
def test_bad_arguments_are_named(name):
    call, x, target = FUNCTIONAL_CALLS[name], torch.randn(2, 4), torch.tensor([0, 1])
    with pytest.raises(NotImplementedError, match=r"reduction.*'median'"):
        call(x, target, reduction="median")
    with pytest.raises(ValueError, match="weight"):
        call(x, target, weight=torch.ones(3))


@pytest.mark.parametrize("name", INDEX_LOSSES)
def test_bad_targets_are_named(name):
    call, x = INDEX_LOSSES[name], torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match="target"):
        call(x, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="target"):
        call(x, torch.zeros(2, 3))
    with pytest.raises(IndexError, match="out of bounds"):
        call(x, torch.full((2, 3), 4))
    with pytest.raises(ValueError, match="x has"):
        call(torch.randn(4), torch.tensor(0))
    # Other integer types, as image readers give, are welcome.
    torch.testing.assert_close(
        call(x, torch.ones(2, 3, dtype=torch.uint8)), call(x, torch.ones(2, 3, dtype=torch.long))
    )


def test_other_bad_arguments():
    x, target = torch.randn(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="gamma"):
        F.focal_loss(x, target, gamma=-1)
    with pytest.raises(ValueError, match="gamma"):
        F.dice_loss(x, target, gamma=-1)
    with pytest.raises(ValueError, match="two classes"):
        F.complement_cross_entropy(torch.randn(2, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="target"):
        F.multilabel_cross_entropy(x, target)
    with pytest.raises(ValueError, match="xi"):
        F.mutual_channel_loss(torch.randn(2, 5, 3, 3), target, xi=2)
    with pytest.raises(ValueError, match="spatial"):
        F.mutual_channel_loss(x, target)
    for build in (
        lambda: nn.FocalLoss(gamma=-1),
        lambda: nn.DiceLoss(eps=-1),
        lambda: nn.MutualChannelLoss(xi=0),
        lambda: nn.Loss(weight=torch.ones(2, 2)),
    ):
        with pytest.raises(ValueError):
            build()
    with pytest.raises(TypeError, match="weight"):
        nn.Loss(weight="balanced")
    with pytest.raises(NotImplementedError, match="reduction"):
        nn.FocalLoss(reduction="max")


def test_weight_of_the_base_class():
    assert nn.Loss().weight is None
    torch.testing.assert_close(nn.Loss(0.25).weight, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(nn.Loss([1, 2, 3]).weight, torch.tensor([1.0, 2.0, 3.0]))
    criterion = nn.FocalLoss(weight=torch.tensor([1.0, 2.0]))
    assert list(criterion.state_dict()) == ["weight"]
    assert criterion.double().weight.dtype == torch.float64
    assert not nn.PolyLoss().state_dict()
    assert "gamma=2.0, ignore_index=-100, reduction='mean'" in repr(nn.FocalLoss())


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (nn.FocalLoss(1.5, weight=[1, 2, 3], ignore_index=1), lambda *a, **k: F.focal_loss(*a, gamma=1.5, **k)),
        (nn.PolyLoss([1, 2, 3], 1, eps=0.5), lambda *a, **k: F.poly_loss(*a, eps=0.5, **k)),
        (
            nn.ComplementCrossEntropy(-2, weight=[1, 2, 3], ignore_index=1),
            lambda *a, **k: F.complement_cross_entropy(*a, gamma=-2, **k),
        ),
    ],
    ids=["focal", "poly", "complement"],
)
def test_modules_hand_everything_over(module, function):
    x, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    for reduction in ("none", "mean", "sum"):
        module.reduction = reduction
        expected = function(x, target, weight=torch.tensor([1.0, 2.0, 3.0]), ignore_index=1, reduction=reduction)
        torch.testing.assert_close(module(x, target), expected)


def test_other_modules_hand_everything_over():
    torch.manual_seed(0)
    weight = torch.tensor([1.0, 2.0, 3.0])
    x, dense = torch.randn(4, 3), torch.rand(4, 3)
    torch.testing.assert_close(
        nn.MultiLabelCrossEntropy([1, 2, 3], 1, "sum")(x, dense),
        F.multilabel_cross_entropy(x, dense, weight, 1, "sum"),
    )
    torch.testing.assert_close(
        nn.DiceLoss([1, 2, 3], 2.0, 0.1)(x.softmax(1), dense), F.dice_loss(x.softmax(1), dense, weight, 2.0, 0.1)
    )
    features, target = torch.randn(2, 9, 4, 4), torch.tensor([2, 0])
    torch.testing.assert_close(
        nn.MutualChannelLoss([1, 2, 3], xi=3, alpha=2).eval()(features, target),
        F.mutual_channel_loss(features, target, weight, xi=3, alpha=2, training=False),
    )


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.99, 0.9999, 1 - 1e-9])
def test_class_balanced_weights(beta):
    samples = torch.tensor([1, 10, 5000, 10**6])
    criterion = nn.ClassBalancedWrapper(nn.FocalLoss(), samples, beta)
    # The effective number 1 + beta + beta² + ..., the geometric sum that the formula closes
    effective = [-np.expm1(n * np.log(beta)) / (1 - beta) if beta else 1.0 for n in samples.tolist()]
    np.testing.assert_allclose(criterion.criterion.weight.numpy(), 1 / np.array(effective), rtol=1e-5)

    x, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 3])
    torch.testing.assert_close(criterion(x, target), F.focal_loss(x, target, criterion.criterion.weight))
    assert criterion.double().criterion.weight.dtype == torch.float64


def test_class_balanced_wrapper_multiplies_and_leaves_the_callers_weights_alone():
    weight, samples = torch.tensor([1.0, 2.0]), torch.tensor([10, 100])
    before = copy.deepcopy(weight)
    criterion = nn.ClassBalancedWrapper(torch.nn.CrossEntropyLoss(weight), samples)
    torch.testing.assert_close(weight, before)
    alone = nn.ClassBalancedWrapper(torch.nn.CrossEntropyLoss(), samples).criterion.weight
    torch.testing.assert_close(criterion.criterion.weight, alone * weight)
    criterion.reduction = "none"
    assert criterion.reduction == "none"
    assert criterion(torch.randn(3, 2), torch.tensor([0, 1, 1])).shape == (3,)


@pytest.mark.parametrize(
    ("criterion", "samples", "beta", "match"),
    [
        (torch.nn.MSELoss(), torch.ones(2), 0.9, "criterion"),
        (nn.FocalLoss(), torch.ones(2), 1.0, "beta"),
        (nn.FocalLoss(), torch.ones(2), -0.1, "beta"),
        (nn.FocalLoss(), torch.tensor([3, 0]), 0.9, "num_samples"),
        (nn.FocalLoss(weight=[1, 2, 3]), torch.ones(2), 0.9, "num_samples"),
    ],
)
def test_class_balanced_wrapper_refuses(criterion, samples, beta, match):
    with pytest.raises(ValueError, match=match):
        nn.ClassBalancedWrapper(criterion, samples, beta)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", INDEX_LOSSES)
def test_half_precision(name, dtype):
    torch.manual_seed(0)
    x, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    loss = INDEX_LOSSES[name](x.to(dtype), target, weight=torch.ones(3))
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.float(), INDEX_LOSSES[name](x, target), rtol=2e-2, atol=2e-2)
