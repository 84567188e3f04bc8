from holocron.models import checkpoints, classification, detection, errors, hub, segmentation
from holocron.models.classification import *  # noqa: F403 - the package says what it exports
from holocron.models.detection import *  # noqa: F403
from holocron.models.errors import *  # noqa: F403
from holocron.models.hub import *  # noqa: F403
from holocron.models.loading import load_checkpoint, load_state_dict, load_weights
from holocron.models.registry import ModelInfo, build_model, get_model_info, list_models, register_model
from holocron.models.segmentation import *  # noqa: F403

__all__ = [
    "ModelInfo",
    "build_model",
    "checkpoints",
    "classification",
    "detection",
    "get_model_info",
    "list_models",
    "load_checkpoint",
    "load_state_dict",
    "load_weights",
    "register_model",
    "segmentation",
]
__all__ += classification.__all__
__all__ += detection.__all__
__all__ += errors.__all__
__all__ += hub.__all__
__all__ += segmentation.__all__
