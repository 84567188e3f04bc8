"""Suppression inside a graph: torchvision's answer on scenes of every kind, on every backend."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torchvision.ops import batched_nms

from export.engine import build_engine
from export.gate import tensorrt10_problems
from export.graph.attach import trace_tail
from export.graph.nms import NonMaxSuppression
from runtime.backends import open_session
from runtime.manifest import EngineInfo
from runtime.nms import NOT_FINITE, TOO_MANY_CANDIDATES, TRUNCATED, UNSETTLED, nms, select_detections

OUTPUTS = ("boxes_out", "scores_out", "labels", "count", "status")
BOXES, CLASSES = 120, 3
KINDS = ("random", "clusters", "chain", "duplicates", "nested", "overlapping", "empty")
# Coordinates are multiples of this, so that torchvision's offsets between classes are exact and round nothing.
GRID = 1 / 16


def scene(kind, generator, n=BOXES, classes=CLASSES):
    """Boxes (n, 4) in pixels, scores (n,) and labels (n,): some of a kind that is hard for suppression."""
    scores = generator.random(n)
    if kind == "random":
        boxes = np.sort(generator.integers(0, 640 / GRID, (n, 2, 2)), axis=1).reshape(n, 4) * GRID
    elif kind == "clusters":
        objects = generator.integers(1, 2 + n // 8)
        center, size = generator.uniform(50, 590, (objects, 2)), generator.uniform(20, 200, (objects, 2))
        which = generator.integers(0, objects, n)
        middle = center[which] + generator.normal(0, 0.2, (n, 2)) * size[which]
        half = size[which] * np.exp(generator.normal(0, 0.2, (n, 2))) / 2
        boxes = np.round(np.concatenate([middle - half, middle + half], axis=1) / GRID) * GRID
    elif kind == "chain":  # each overlaps its neighbours, and the best is at one end
        step = generator.integers(5, 60)
        left = np.arange(n) * step
        boxes = np.stack([left, np.zeros(n), left + 100, np.full(n, 50)], axis=1)
        scores = np.sort(scores)[::-1]
    elif kind == "duplicates":
        few = np.sort(generator.integers(0, 640, (1 + n // 8, 2, 2)), axis=1).reshape(-1, 4)
        boxes = few[generator.integers(0, len(few), n)]
    elif kind == "nested":
        inset = np.arange(n) * 2.0
        boxes = np.stack([inset, inset, 640 - inset, 640 - inset], axis=1)
    elif kind == "overlapping":
        boxes = np.array([10, 10, 110, 110]) + generator.integers(0, 3, (n, 4))
    else:
        boxes, scores = np.zeros((n, 4)), scores * 0.01
    if generator.random() < 0.4:  # as a quantized head answers: few values, many ties
        scores = np.round(scores * generator.choice([1, 3, 16])) / 16
    labels = generator.integers(0, generator.integers(1, classes + 1), n)
    return boxes.astype(np.float32), scores.astype(np.float32), labels


def spread(scores, labels, classes=CLASSES):
    """Scores (n, classes) whose best is the given one."""
    out = np.zeros((len(scores), classes), np.float32)
    out[np.arange(len(scores)), labels] = scores
    return out


def torchvision_answer(boxes, scores, labels, score_threshold, iou_threshold, candidates):
    """Indices that torchvision keeps of the best candidates, sorted; of equal scores the lower index first."""
    valid = (scores >= np.float32(score_threshold)) & (boxes[:, :2] < boxes[:, 2:]).all(1)
    order = np.flatnonzero(valid)
    order = torch.from_numpy(order[np.argsort(-scores[order], kind="stable")[:candidates]])
    at = [torch.from_numpy(array)[order] for array in (boxes, scores, labels)]
    kept = order[batched_nms(*at, iou_threshold)].numpy()
    return kept[np.lexsort((kept, -scores[kept]))]


def check_scene(answer, boxes, scores, labels, expected, max_detections, steps_suffice=True):
    """Compare one image's outputs, numpy arrays, with the indices that belong there."""
    out_boxes, out_scores, out_labels, count, status = answer
    assert bool(status & UNSETTLED) is False or not steps_suffice
    assert bool(status & TRUNCATED) == (len(expected) > max_detections)
    expected = expected[:max_detections]
    assert count == len(expected)
    np.testing.assert_array_equal(out_boxes[:count], boxes[expected])
    np.testing.assert_array_equal(out_scores[:count], scores[expected])
    np.testing.assert_array_equal(out_labels[:count], labels[expected])
    assert not out_boxes[count:].any()
    assert not out_scores[count:].any()
    assert (out_labels[count:] == -1).all()


def many_scenes(count, seed):
    generator = np.random.default_rng(seed)
    for number in range(count):
        n = int(generator.integers(1, BOXES + 1))
        boxes, scores, labels = scene(KINDS[number % len(KINDS)], generator, n)
        labels = np.where(scores > 0, labels, 0)  # a box that scores nothing for any class is of the first
        yield generator, boxes, scores, labels


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_keeps_what_torchvision_keeps(count):
    """Every scene settled, and the numpy function of the runtime with it."""
    settled = 0
    for generator, boxes, scores, labels in many_scenes(count, seed=0):
        candidates = int(generator.choice([10, 50, BOXES]))
        rows = int(generator.integers(1, candidates + 1))
        iou_threshold = float(generator.choice([0, 0.3, 0.45, 0.5, 0.6, 0.7, 0.9, 1]))
        score_threshold = float(generator.choice([0, 0.05, 0.5]))
        module = NonMaxSuppression(score_threshold, iou_threshold, rows, candidates, steps=candidates + 2)
        per_class = spread(scores, labels)
        answer = [out[0].numpy() for out in module(torch.from_numpy(boxes)[None], torch.from_numpy(per_class)[None])]
        expected = torchvision_answer(boxes, scores, labels, score_threshold, iou_threshold, candidates)
        check_scene(answer, boxes, scores, labels, expected, rows)
        ours = select_detections(boxes, per_class, score_threshold, iou_threshold, rows, candidates)
        np.testing.assert_array_equal(ours.boxes, boxes[expected[:rows]])
        np.testing.assert_array_equal(ours.labels, labels[expected[:rows]])
        assert ours.status == answer[4]
        settled += 1
    assert settled == count


@pytest.mark.parametrize("candidates", [320, 321, 700])
def test_more_candidates_than_one_block_of_the_matrix(candidates):
    generator = np.random.default_rng(candidates)
    for kind in KINDS[:-1]:
        boxes, scores, labels = scene(kind, generator, 800)
        labels = np.where(scores > 0, labels, 0)
        module = NonMaxSuppression(0.05, 0.45, candidates, candidates, candidates + 2)
        answer = module(torch.from_numpy(boxes)[None], torch.from_numpy(spread(scores, labels))[None])
        expected = torchvision_answer(boxes, scores, labels, 0.05, 0.45, candidates)
        check_scene([out[0].numpy() for out in answer], boxes, scores, labels, expected, candidates)


@pytest.fixture(scope="module")
def graph():
    """40 of 120 candidates, 30 rows, 12 steps: too few for some scenes."""
    module = NonMaxSuppression(0.1, 0.45, 30, 40, 12)
    return module, trace_tail(module, {"boxes": (BOXES, 4), "scores": (BOXES, CLASSES)}, OUTPUTS)


def padded(boxes, scores, labels):
    per_class = np.zeros((BOXES, CLASSES), np.float32)
    per_class[: len(scores)] = spread(scores, labels)
    full = np.zeros((BOXES, 4), np.float32)
    full[: len(boxes)] = boxes
    return full, per_class


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_graph_answers_as_torchvision_on_each_backend(graph, backend):
    """A scene that needs more steps says so, and has all that belongs there."""
    pytest.importorskip(backend)
    session = open_session(graph[1].SerializeToString(), backend, 1)
    scenes = [(b, s, lab) for _, b, s, lab in many_scenes(210, seed=7)]
    unsettled = 0
    for start in range(0, len(scenes), 30):
        part = scenes[start : start + 30]
        boxes, scores = map(np.stack, zip(*(padded(*each) for each in part), strict=True))
        outputs = session.run({"boxes": boxes, "scores": scores})
        for i, (b, s, lab) in enumerate(part):
            answer = [outputs[name][i] for name in OUTPUTS]
            expected = torchvision_answer(b, s, lab, 0.1, 0.45, 40)
            if answer[4] & UNSETTLED:
                unsettled += 1
                rows = {tuple(box) for box in answer[0][: answer[3]]}
                if not answer[4] & TRUNCATED:
                    assert rows >= {tuple(box) for box in b[expected]}
            else:
                check_scene(answer, b, s, lab, expected, 30)
    assert 0 < unsettled < 40
    session.close()


def test_types_and_fixed_shapes(graph):
    model = graph[1]
    shapes = {o.name: [d.dim_value or d.dim_param for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    batch = shapes["count"][0]
    assert shapes == {
        "boxes_out": [batch, 30, 4],
        "scores_out": [batch, 30],
        "labels": [batch, 30],
        "count": [batch],
        "status": [batch],
    }
    kinds = {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
    assert {name for name, kind in kinds.items() if kind == onnx.TensorProto.INT32} == {"labels", "count", "status"}
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.value_info
    dynamic = {d.dim_param for v in known for d in v.type.tensor_type.shape.dim if not d.HasField("dim_value")}
    assert dynamic == {batch}
    assert not {"NonZero", "NonMaxSuppression", "Loop", "If"} & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("multi_label", [False, True])
def test_passes_the_gate_and_tensorrt_rtx_builds_it(multi_label):
    pytest.importorskip("tensorrt_rtx")
    module = NonMaxSuppression(0.25, 0.45, 20, 50, 6, multi_label)
    model = trace_tail(module, {"boxes": (BOXES, 4), "scores": (BOXES, CLASSES)}, OUTPUTS)
    assert tensorrt10_problems(model) == []
    for capability in ("7.5", "8.6"):  # the older has no float32 matrix products
        assert len(build_engine(model.SerializeToString(), EngineInfo("tensorrt_rtx", "1.7.1", capability, 2))) > 1000


class TopK(OpRun):
    """A TopK that takes the last of equal values first: which one it takes is a backend's choice."""

    op_domain = ""
    tied = 0

    def _run(self, x, k, axis=-1, largest=1, sorted=1):
        assert axis in (1, x.ndim - 1)
        key = -x if largest else x
        TopK.tied += sum(len(row) - len(np.unique(row)) for row in x)
        order = x.shape[1] - 1 - np.argsort(key[:, ::-1], axis=1, kind="stable")[:, : int(k[0])]
        return np.take_along_axis(x, order, 1), order.astype(np.int64)


class GatherElements(OpRun):
    """As the standard says: onnx's own gives up at more than 64 rows."""

    op_domain = ""

    def _run(self, x, index, axis=0):
        return (np.take_along_axis(x, index, axis),)


def test_which_of_equal_values_a_sort_takes_is_no_matter(graph):
    model = graph[1]
    assert "ArgMax" not in {node.op_type for node in model.graph.node}
    usual = ReferenceEvaluator(model, new_ops=[GatherElements])
    unusual = ReferenceEvaluator(model, new_ops=[GatherElements, TopK])
    generator = np.random.default_rng(5)
    TopK.tied = 0
    for values in (6, 2, 0):
        boxes = np.round(generator.random((1, BOXES, 4)) * 4).astype(np.float32)
        boxes[..., 2:] += boxes[..., :2] + 1
        scores = 0.5 + (np.round(generator.random((1, BOXES, CLASSES)) * values) / 16).astype(np.float32)
        feeds = {"boxes": boxes, "scores": scores}
        expected, answer = usual.run(None, feeds), unusual.run(None, feeds)
        assert expected[3] > 5
        for one, other in zip(answer, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert TopK.tied > 300


def test_a_chain_longer_than_the_steps_is_reported():
    left = torch.arange(10.0) * 40
    boxes = torch.stack([left, torch.zeros(10), left + 100, torch.ones(10)], dim=1)[None]
    scores = torch.linspace(0.9, 0.5, 10)[None, :, None]
    for steps in range(2, 14):
        out = NonMaxSuppression(0.1, 0.4, 10, 10, steps)(boxes, scores)
        assert int(out.status) == (0 if steps >= 10 else UNSETTLED)
        rows = out.scores[0, : int(out.counts)]
        assert set(scores[0, ::2, 0].tolist()) <= set(rows.tolist())  # the even ones are what greedy keeps
        if steps >= 10:
            assert int(out.counts) == 5


@pytest.mark.parametrize("steps", [4, 5, 14])
def test_what_one_block_leaves_open_drops_nothing_from_the_next(steps):
    """700 candidates, three blocks of the matrix, in 20 chains of 35: 12 links a block, each of which suppresses the
    next.
    """
    place, row = np.divmod(np.arange(700), 20)
    corner = np.stack([place * 30, row * 200], axis=1)
    boxes = np.concatenate([corner, corner + np.array([100, 100])], axis=1).astype(np.float32)
    scores = (0.9 - np.arange(700) / 1000).astype(np.float32)
    expected = torchvision_answer(boxes, scores, np.zeros(700, np.int64), 0.1, 0.45, 700)
    module = NonMaxSuppression(0.1, 0.45, 700, 700, steps)
    out = module(torch.from_numpy(boxes[None]), torch.from_numpy(scores[None, :, None]))
    rows = out.scores[0, : int(out.counts)].tolist()
    if steps == 14:
        assert int(out.status) == 0
        assert rows == scores[expected].tolist()
    else:
        assert int(out.status) == UNSETTLED
        assert set(rows) > set(scores[expected].tolist())


def test_one_image_says_nothing_of_another(graph):
    scenes = [padded(b, s, lab) for _, b, s, lab in many_scenes(14, seed=3)]
    boxes, scores = (torch.from_numpy(np.stack(part)) for part in zip(*scenes, strict=True))
    together = graph[0](boxes, scores)
    for i in range(len(scenes)):
        alone = graph[0](boxes[i : i + 1], scores[i : i + 1])
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_[i])


def test_every_class_of_a_box_can_be_a_candidate():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]])
    scores = torch.tensor([[[0.9, 0.6], [0.8, 0.7], [0.1, 0.3]]])
    one = NonMaxSuppression(0.2, 0.5, 4, 4, 8)(boxes, scores)
    assert one.scores[0].tolist() == pytest.approx([0.9, 0.3, 0, 0])
    assert one.labels[0].tolist() == [0, 1, -1, -1]
    several = NonMaxSuppression(0.2, 0.5, 4, 4, 8, multi_label=True)(boxes, scores)
    assert several.scores[0].tolist() == pytest.approx([0.9, 0.7, 0, 0])
    assert several.labels[0].tolist() == [0, 1, -1, -1]
    assert int(several.status) == TOO_MANY_CANDIDATES  # five pairs reach the threshold, four take part
    all_pairs = NonMaxSuppression(0.2, 0.5, 4, 6, 8, multi_label=True)(boxes, scores)
    assert all_pairs.scores[0].tolist() == pytest.approx([0.9, 0.7, 0.3, 0])
    assert all_pairs.labels[0].tolist() == [0, 1, 1, -1]
    assert all_pairs.boxes[0, 1].tolist() == [0, 0, 10, 9]
    assert int(all_pairs.status) == 0


def test_fewer_boxes_than_rows():
    out = NonMaxSuppression(0.1, 0.5, 8, 16)(torch.tensor([[[0.0, 0, 1, 1]]]), torch.tensor([[[0.5, 0.7]]]))
    assert out.boxes.shape == (1, 8, 4)
    assert (int(out.counts), out.labels[0].tolist()) == (1, [1] + [-1] * 7)


def test_flags_of_truncation_and_of_candidates_left_out():
    left = torch.arange(6.0) * 20
    boxes = torch.stack([left, torch.zeros(6), left + 10, torch.ones(6)], dim=1)[None]
    scores = torch.linspace(0.9, 0.4, 6)[None, :, None]

    def status(rows, candidates):
        out = NonMaxSuppression(0.1, 0.5, rows, candidates)(boxes, scores)
        assert int(out.counts) == min(rows, candidates)
        return int(out.status)

    assert status(6, 6) == 0
    assert status(3, 6) == TRUNCATED
    assert status(4, 5) == TRUNCATED
    # As many rows as candidates, all filled: what is left out could not have been given anyway.
    assert status(5, 5) == 0
    doubled = torch.cat([boxes, boxes], dim=1), torch.cat([scores, scores], dim=1)
    out = NonMaxSuppression(0.1, 0.5, 4, 5)(*doubled)
    assert int(out.counts) == 3
    assert int(out.status) == TOO_MANY_CANDIDATES


@pytest.mark.parametrize("backend", [None, "onnxruntime", "openvino"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["boxes", "scores"])
def test_what_is_not_finite_is_reported(graph, backend, value, place):
    boxes, scores = padded(*scene("random", np.random.default_rng(1)))
    feeds = {"boxes": np.stack([boxes, boxes]), "scores": np.stack([scores, scores])}
    feeds[place][1, 5, 0] = value
    if backend is None:
        status = graph[0](*map(torch.from_numpy, feeds.values())).status.numpy()
    else:
        pytest.importorskip(backend)
        if backend == "onnxruntime":
            import onnxruntime

            session = onnxruntime.InferenceSession(graph[1].SerializeToString(), providers=["CPUExecutionProvider"])
            status = session.run(["status"], feeds)[0]
        else:
            import openvino

            core = openvino.Core()
            compiled = core.compile_model(core.read_model(graph[1].SerializeToString()), "CPU")
            status = compiled(feeds)[compiled.output("status")]
    assert not status[0] & NOT_FINITE
    assert status[1] & NOT_FINITE


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8), st.integers(1, 8)), max_size=12),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_small_scenes_against_greedy_written_out(corners, seed, iou_threshold):
    """Integer boxes, where IoU often equals the threshold exactly; scores of four values."""
    generator = np.random.default_rng(seed)
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in corners], np.float32).reshape(-1, 4)
    n = len(boxes)
    scores = generator.integers(1, 5, n).astype(np.float32) / 4
    labels = generator.integers(0, 2, n)
    kept = []
    for i in sorted(range(n), key=lambda j: (-scores[j], j)):
        for j in kept:
            inner = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
            overlap = float(np.prod(np.maximum(inner, 0)))
            union = float(np.prod(boxes[i, 2:] - boxes[i, :2]) + np.prod(boxes[j, 2:] - boxes[j, :2])) - overlap
            if labels[i] == labels[j] and overlap / union > iou_threshold:
                break
        else:
            kept.append(i)
    assert nms(boxes, scores, labels, iou_threshold).tolist() == kept
    if n:
        module = NonMaxSuppression(0.1, iou_threshold, 12, 12, 14)
        out = module(torch.from_numpy(boxes)[None], torch.from_numpy(spread(scores, labels, 2))[None])
        check_scene([o[0].numpy() for o in out], boxes, scores, labels, np.array(kept, int), 12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"score_threshold": 1.5}, ValueError, r"score_threshold is 1\.5, expected a number from 0 to 1"),
        ({"score_threshold": float("nan")}, ValueError, "score_threshold is nan"),
        ({"iou_threshold": -0.1}, ValueError, r"iou_threshold is -0\.1"),
        ({"iou_threshold": "half"}, TypeError, "iou_threshold is 'half', expected a number"),
        ({"max_detections": 0}, ValueError, "max_detections is 0, expected 1 at least"),
        ({"max_detections": 2.0}, TypeError, r"max_detections is 2\.0, expected an integer"),
        ({"max_detections": 301}, ValueError, "candidates is 300, fewer than the 301 of max_detections"),
        ({"candidates": 3840}, ValueError, "candidates is 3840, expected 3839 at most: TensorRT"),
        ({"candidates": True}, TypeError, "candidates is True"),
        ({"steps": 1}, ValueError, "steps is 1, expected 2 at least"),
        ({"steps": 4.5}, TypeError, r"steps is 4\.5"),
    ],
)
def test_numbers_that_mean_nothing(options, error, message):
    with pytest.raises(error, match=message):
        NonMaxSuppression(**options)


def test_shapes_that_do_not_fit():
    module = NonMaxSuppression()
    with pytest.raises(ValueError, match=r"boxes of shape \(1, 5, 4\) do not fit scores of shape \(1, 6, 2\)"):
        module(torch.zeros(1, 5, 4), torch.zeros(1, 6, 2))
    with pytest.raises(ValueError, match="more than the 8388608"):
        module(torch.zeros(1, 2**23 + 1, 4), torch.zeros(1, 2**23 + 1, 1))
    assert "candidates=300" in repr(module)
