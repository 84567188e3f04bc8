"""In-graph suppression against the ONNX operator, its steps against what scenes need, its answers against torchvision.

    python benchmarks/nms.py [--boxes 1000] [--classes 20] [--rounds 200] [--scenes 10000] [--json]

Speed: ONNX Runtime on the processor, one thread, side by side in one process. Both are whole graphs, from boxes and the
scores of every class to boxes, scores, labels and a count. The operator takes every class of a box for a candidate of
its own, and in the first comparison so does our graph: the same candidates, and the same detections to the last.
In the second, each box is of its best class alone, as the detectors of this package have it: the operator is
given the scores of that class, all others being 0.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

import numpy as np
import onnx
import torch
from common import machine, medians, ratio, side_by_side
from onnx import TensorProto, helper, numpy_helper
from torchvision.ops import batched_nms

from export.graph.attach import trace_tail
from export.graph.nms import NonMaxSuppression
from runtime.backends import open_session
from runtime.nms import UNSETTLED
from runtime.table import format_table

SCORE, IOU, ROWS = 0.05, 0.45, 100
OUTPUTS = ("out_boxes", "out_scores", "labels", "count", "status")


def scene(generator, boxes, classes, objects=30, spread=0.15) -> tuple:
    """Boxes (P, 4) around objects of one class each, and scores (P, C), highest for that class; some noise in both."""
    center, size = generator.random((objects, 2)), generator.uniform(0.05, 0.4, (objects, 2))
    which = generator.integers(0, objects, boxes)
    middle = center[which] + generator.normal(0, spread, (boxes, 2)) * size[which]
    half = size[which] * np.exp(generator.normal(0, spread, (boxes, 2))) / 2
    scores = generator.random((boxes, classes)) * 0.3
    scores[np.arange(boxes), which % classes] = generator.random(boxes)
    corners = np.concatenate([middle - half, middle + half], axis=1).clip(0, 1)
    return corners.astype(np.float32), scores.astype(np.float32)


def operator_graph(boxes, classes, best_class) -> bytes:
    """From boxes and scores to the best ROWS detections by NonMaxSuppression, as exporters write it."""
    constants = {
        "most": np.array([ROWS], np.int64),
        "iou": np.array([IOU], np.float32),
        "score": np.array([SCORE], np.float32),
        "zero": np.float32(0),
        "rows": np.array([ROWS], np.int64),
        "last": np.array([2], np.int64),
        "box_columns": np.array([0, 2], np.int64),
        "class_column": np.int64(1),
        "no_box": np.zeros((ROWS, 4), np.float32),
        "no_score": np.zeros(ROWS, np.float32),
        "first_axis": np.array([0], np.int64),
        "start": np.array([0], np.int64),
        "one": np.array([1], np.int64),
    }
    nodes = []
    scores = "scores"
    if best_class:
        nodes += [
            helper.make_node("ReduceMax", ["scores", "last"], ["best"]),
            helper.make_node("Equal", ["scores", "best"], ["is_best"]),
            helper.make_node("Where", ["is_best", "scores", "zero"], ["masked"]),
        ]
        scores = "masked"
    nodes += [
        helper.make_node("Transpose", [scores], ["by_class"], perm=[0, 2, 1]),
        helper.make_node("NonMaxSuppression", ["boxes", "by_class", "most", "iou", "score"], ["chosen"]),
        helper.make_node("GatherND", ["by_class", "chosen"], ["chosen_scores"]),
        helper.make_node("Gather", ["chosen", "box_columns"], ["places"], axis=1),
        helper.make_node("GatherND", ["boxes", "places"], ["chosen_boxes"]),
        helper.make_node("Gather", ["chosen", "class_column"], ["chosen_labels"], axis=1),
        # Padded, so that there are ROWS of them, and the best of those.
        helper.make_node("Concat", ["chosen_scores", "no_score"], ["padded_scores"], axis=0),
        helper.make_node("Concat", ["chosen_boxes", "no_box"], ["padded_boxes"], axis=0),
        helper.make_node("TopK", ["padded_scores", "rows"], ["out_scores", "order"], axis=0),
        helper.make_node("Gather", ["padded_boxes", "order"], ["out_boxes"], axis=0),
        helper.make_node("Cast", ["chosen_labels"], ["chosen_labels_32"], to=TensorProto.INT32),
        helper.make_node("Cast", ["no_score"], ["no_label"], to=TensorProto.INT32),
        helper.make_node("Concat", ["chosen_labels_32", "no_label"], ["padded_labels"], axis=0),
        helper.make_node("Gather", ["padded_labels", "order"], ["labels"], axis=0),
        helper.make_node("Greater", ["out_scores", "zero"], ["used"]),
        helper.make_node("Cast", ["used"], ["used_32"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["used_32", "first_axis"], ["count"]),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "operator",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, boxes, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, boxes, classes]),
        ],
        [
            helper.make_tensor_value_info("out_boxes", TensorProto.FLOAT, [ROWS, 4]),
            helper.make_tensor_value_info("out_scores", TensorProto.FLOAT, [ROWS]),
            helper.make_tensor_value_info("labels", TensorProto.INT32, [ROWS]),
            helper.make_tensor_value_info("count", TensorProto.INT32, [1]),
        ],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def our_graph(boxes, classes, candidates, multi_label) -> bytes:
    """The same by :class:`NonMaxSuppression`."""
    module = NonMaxSuppression(SCORE, IOU, ROWS, candidates, 16, multi_label)
    return trace_tail(module, {"boxes": (boxes, 4), "scores": (boxes, classes)}, OUTPUTS).SerializeToString()


def speed(boxes, classes, rounds) -> list[dict]:
    """A row a comparison: milliseconds of both, how many times faster ours is, and whether they answer alike."""
    corners, scores = scene(np.random.default_rng(0), boxes, classes)
    feeds = {"boxes": corners[None], "scores": scores[None]}
    rows = []
    for multi_label, candidates in ((True, 300), (True, boxes), (False, 300), (False, boxes)):
        ours = open_session(our_graph(boxes, classes, candidates, multi_label), "onnxruntime", 1)
        theirs = open_session(operator_graph(boxes, classes, not multi_label), "onnxruntime", 1)
        runs = {"ours": lambda s=ours: s.run(feeds), "operator": lambda s=theirs: s.run(feeds)}
        a, b = runs["ours"](), runs["operator"]()
        n = int(a["count"][0])
        equal = n <= int(b["count"][0]) and np.array_equal(a["out_scores"][0, :n], b["out_scores"][:n])
        seconds = side_by_side(runs, rounds)
        rows.append(
            {
                "candidates": "every class" if multi_label else "best class",
                "K": candidates,
                "ours_ms": 1e3 * medians(seconds)["ours"],
                "operator_ms": 1e3 * medians(seconds)["operator"],
                "times_faster": ratio(seconds, "operator", "ours"),
                "detections": n,
                "equal": bool(equal and np.allclose(a["out_boxes"][0, :n], b["out_boxes"][:n])),
            }
        )
    return rows


def steps_needed(generator, scenes) -> Counter[int]:
    """How many steps scenes with objects need until nothing changes: a count of scenes for each number."""
    needed: Counter[int] = Counter()
    for _ in range(scenes):
        boxes, scores = scene(
            generator,
            int(generator.choice([50, 100, 300])),
            int(generator.choice([1, 3, 20])),
            int(generator.integers(1, 60)),
            float(generator.uniform(0.03, 0.4)),
        )
        labels = scores.argmax(1)
        order = np.argsort(-scores.max(1), kind="stable")
        order = order[(boxes[order, :2] < boxes[order, 2:]).all(1)]
        boxes, labels = boxes[order], labels[order]
        inner = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
        overlap = inner.clip(0).prod(-1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        iou = overlap / (area[:, None] + area - overlap)
        matrix = np.triu((iou > generator.choice([0.3, 0.45, 0.6, 0.7])) & (labels[:, None] == labels), 1)
        keep, steps = np.ones(len(boxes), bool), 0
        while True:
            steps += 1
            after = ~(keep @ matrix)
            if (after == keep).all():
                break
            keep = after
        needed[steps] += 1
    return needed


def agreement(generator, scenes) -> tuple[int, int]:
    """How many scenes keep what torchvision keeps, and how many of the others say that they do not."""
    equal = reported = 0
    for _ in range(scenes):
        boxes, scores = scene(generator, 300, 5, int(generator.integers(1, 60)), float(generator.uniform(0.03, 0.4)))
        # Whole numbers: torchvision tells classes apart by an offset, which would round others.
        boxes = np.round(boxes * 1024).astype(np.float32)
        out = NonMaxSuppression(SCORE, IOU, 300, 300)(torch.from_numpy(boxes)[None], torch.from_numpy(scores)[None])
        best, labels = (torch.from_numpy(part) for part in (scores.max(1), scores.argmax(1)))
        corners = torch.from_numpy(boxes)
        valid = ((best >= SCORE) & (corners[:, :2] < corners[:, 2:]).all(1)).nonzero()[:, 0]
        kept = valid[batched_nms(corners[valid], best[valid], labels[valid], IOU)]
        same = int(out.counts) == len(kept) and torch.equal(out.scores[0, : len(kept)], best[kept])
        equal += same
        reported += not same and bool(int(out.status) & UNSETTLED)
    return equal, reported


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = speed(args.boxes, args.classes, args.rounds)
    needed = steps_needed(np.random.default_rng(1), args.scenes)
    equal, reported = agreement(np.random.default_rng(2), args.scenes)
    if args.json:
        steps = {str(n): needed[n] for n in sorted(needed)}
        print(json.dumps({"speed": rows, "steps": steps, "equal": equal, "reported": reported, "scenes": args.scenes}))
        return
    print(f"{machine()}; {args.boxes} boxes, {args.classes} classes, score {SCORE}, IoU {IOU}, {ROWS} rows\n")
    table = [
        [
            row["candidates"],
            row["K"],
            f"{row['ours_ms']:.2f}",
            f"{row['operator_ms']:.2f}",
            f"{row['times_faster']:.2f} ×",
            row["detections"],
            "yes" if row["equal"] else "no",
        ]
        for row in rows
    ]
    headers = ("candidates", "K", "in the graph, ms", "NonMaxSuppression, ms", "faster", "detections", "equal")
    print(format_table(headers, table))
    print(f"\nsteps needed by {args.scenes} scenes: " + ", ".join(f"{n}: {needed[n]}" for n in sorted(needed)))
    print(f"equal to torchvision with 16 steps: {equal} of {args.scenes}; others that say so: {reported}")


if __name__ == "__main__":
    main()
