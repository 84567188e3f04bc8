"""Training loops for classification, segmentation and detection."""

from holocron.trainer.classification import BinaryClassificationTrainer, ClassificationTrainer
from holocron.trainer.core import Trainer
from holocron.trainer.detection import DetectionTrainer
from holocron.trainer.quantization import DistillationLoss, QuantizationTrainer, UnlabelledDataset, VariedDataset
from holocron.trainer.segmentation import SegmentationTrainer
from holocron.trainer.utils import freeze_bn, freeze_model

__all__ = [
    "BinaryClassificationTrainer",
    "ClassificationTrainer",
    "DetectionTrainer",
    "DistillationLoss",
    "QuantizationTrainer",
    "SegmentationTrainer",
    "Trainer",
    "UnlabelledDataset",
    "VariedDataset",
    "freeze_bn",
    "freeze_model",
]
