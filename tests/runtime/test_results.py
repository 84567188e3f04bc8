"""What a classifier answers."""

import json

import numpy as np
import pytest
import torch

from runtime import Classification, Prediction


def answer(*logits):
    return Classification(np.array(logits, np.float32), tuple("abcdefgh"[: len(logits)]))


def test_scores_are_the_softmax_in_float64():
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 10
    found = Classification(logits, tuple(map(str, range(1000))))
    expected = torch.softmax(torch.from_numpy(logits).double(), 0).numpy()
    np.testing.assert_allclose(found.probabilities(), expected, rtol=1e-12)
    assert found.score == pytest.approx(expected.max(), rel=1e-12)
    assert [p.index for p in found.top(5)] == torch.topk(torch.from_numpy(logits), 5).indices.tolist()


def test_large_logits_do_not_overflow():
    assert answer(1e4, 0, -1e4).top(1) == [Prediction("a", 0, 1.0)]


def test_of_equal_classes_the_lower_index_comes_first():
    found = answer(1, 3, 3, 1, 3)
    assert [p.index for p in found.top(5)] == [1, 2, 4, 0, 3]
    assert (found.index, found.label) == (1, "b")


def test_k_beyond_the_classes_gives_all():
    assert len(answer(1, 2).top(10)) == 2


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_is_an_error(k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        answer(1, 2).top(k)


def test_labels_must_fit():
    with pytest.raises(ValueError, match="3 labels do not fit"):
        Classification(np.zeros(2, np.float32), ("a", "b", "c"))
    with pytest.raises(ValueError, match="do not fit"):
        Classification(np.zeros((1, 2), np.float32), ("a", "b"))


def test_to_dict_is_plain_json():
    data = json.loads(json.dumps(answer(0, 2, 1).to_dict(2)))
    assert data["label"] == "b"
    assert data["index"] == 1
    assert [p["label"] for p in data["top"]] == ["b", "c"]
    assert data["score"] == data["top"][0]["score"]


def test_repr_names_the_class():
    assert repr(answer(0, 100)) == "Classification('b', score=1.0000, 1 other classes)"
