"""The table of models, and the published entries of each."""

import copy
import dataclasses
import enum
import pickle

import pytest
from torchvision.transforms import InterpolationMode

from holocron import models
from holocron.models import build_model, get_model_info, list_models, register_model
from holocron.models.checkpoints import Checkpoint, Metric, TrainingRecipe

CATEGORIES = (
    "tench", "English springer", "cassette player", "chain saw", "church",
    "French horn", "garbage truck", "gas pump", "golf ball", "parachute",
)  # fmt: skip


def test_every_published_builder_is_listed(compat_models):
    for name, facts in compat_models.items():
        assert name in list_models()
        assert name in list_models(facts["task"])
        info = get_model_info(name)
        assert (info.name, info.task, info.builder) == (name, facts["task"], getattr(models, name))
    assert list_models() == sorted(list_models())


def test_every_published_checkpoint_entry(compat_checkpoints):
    for full_name, facts in compat_checkpoints.items():
        enumeration, member = full_name.split(".")
        checkpoint = getattr(models, enumeration)[member].value
        assert isinstance(checkpoint, Checkpoint)
        assert {
            "arch": checkpoint.meta.arch,
            "url": checkpoint.meta.url,
            "sha256": checkpoint.meta.sha256,
            "size": checkpoint.meta.size,
            "num_params": checkpoint.meta.num_params,
            "num_classes": len(checkpoint.meta.categories),
            "dataset": checkpoint.evaluation.dataset.value,
            "results": {metric.value: value for metric, value in checkpoint.evaluation.results.items()},
            "input_shape": list(checkpoint.pre_processing.input_shape),
            "mean": list(checkpoint.pre_processing.mean),
            "std": list(checkpoint.pre_processing.std),
            "interpolation": checkpoint.pre_processing.interpolation.value,
        } == facts
        if facts["dataset"] == "imagenette":
            assert checkpoint.meta.categories == CATEGORIES
        assert get_model_info(facts["arch"]).checkpoints is getattr(models, enumeration)


def test_no_entry_beyond_the_published_ones(compat_checkpoints):
    for name in list_models():
        info = get_model_info(name)
        if info.checkpoints is not None:
            entries = {f"{info.checkpoints.__name__}.{member}" for member in info.checkpoints.__members__}
            assert entries == {
                entry for entry in compat_checkpoints if entry.startswith(f"{info.checkpoints.__name__}.")
            }


def test_checkpoints_are_values(compat_checkpoints):
    checkpoint = models.RepVGG_A0_Checkpoint.IMAGENETTE.value
    assert models.RepVGG_A0_Checkpoint.DEFAULT is models.RepVGG_A0_Checkpoint.IMAGENETTE
    assert copy.deepcopy(checkpoint) == checkpoint
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint
    assert hash(checkpoint) == hash(copy.deepcopy(checkpoint))
    assert checkpoint.recipe == TrainingRecipe(commit=None, script=None, args=None)
    assert checkpoint.evaluation.results[Metric.TOP1_ACC] == 0.9292
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.meta.url = "https://elsewhere"


def test_info():
    info = get_model_info("repvgg_a0")
    assert info.input_size == (224, 224)
    assert info.mean == (0.485, 0.456, 0.406)
    assert info.std == (0.229, 0.224, 0.225)
    assert info.interpolation is InterpolationMode.BILINEAR
    assert info.default_checkpoint is models.RepVGG_A0_Checkpoint.DEFAULT.value
    assert get_model_info("repvgg_b3").default_checkpoint is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("repvgg_a9", "did you mean .*repvgg_a"),
        ("RepVGG-A0", "did you mean repvgg_a0"),
        ("mobilone_s1", "did you mean mobileone_s1"),
        ("zzz", "expected one of the 59 names of .*list_models.*yolov1.*unet"),
        ("", "expected one of"),
        (None, "expected one of"),
        (["repvgg_a0"], "unknown model"),
    ],
)
def test_unknown_names(name, hint):
    with pytest.raises(ValueError, match=hint):
        build_model(name)


def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'clasification': expected one of classification"):
        list_models("clasification")


def test_build_passes_arguments_on():
    model = build_model("mobileone_s1", num_classes=4, in_channels=1)
    assert model.head.out_features == 4
    assert model.features[0][0][0][0].in_channels == 1


def test_registering_twice_is_refused():
    def repvgg_a0():
        raise AssertionError

    with pytest.raises(
        ValueError, match=r"'repvgg_a0' is already registered, by holocron\.models\.classification\.repvgg"
    ):
        register_model()(repvgg_a0)


def test_family_enumerations_are_enums():
    assert all(
        issubclass(get_model_info(name).checkpoints or enum.Enum, enum.Enum) for name in list_models("classification")
    )
