from holocron.models.classification import (
    convnext,
    darknet,
    darknetv2,
    darknetv3,
    darknetv4,
    mobileone,
    pyconv_resnet,
    repvgg,
    repvit,
    res2net,
    resnet,
    rexnet,
    sknet,
    tridentnet,
)
from holocron.models.classification.convnext import *  # noqa: F403 - the module says what it exports
from holocron.models.classification.darknet import *  # noqa: F403
from holocron.models.classification.darknetv2 import *  # noqa: F403
from holocron.models.classification.darknetv3 import *  # noqa: F403
from holocron.models.classification.darknetv4 import *  # noqa: F403
from holocron.models.classification.mobileone import *  # noqa: F403
from holocron.models.classification.pyconv_resnet import *  # noqa: F403
from holocron.models.classification.repvgg import *  # noqa: F403
from holocron.models.classification.repvit import *  # noqa: F403
from holocron.models.classification.res2net import *  # noqa: F403
from holocron.models.classification.resnet import *  # noqa: F403
from holocron.models.classification.rexnet import *  # noqa: F403
from holocron.models.classification.sknet import *  # noqa: F403
from holocron.models.classification.tridentnet import *  # noqa: F403

__all__: list[str] = []
__all__ += convnext.__all__
__all__ += darknet.__all__
__all__ += darknetv2.__all__
__all__ += darknetv3.__all__
__all__ += darknetv4.__all__
__all__ += mobileone.__all__
__all__ += pyconv_resnet.__all__
__all__ += repvgg.__all__
__all__ += repvit.__all__
__all__ += res2net.__all__
__all__ += resnet.__all__
__all__ += rexnet.__all__
__all__ += sknet.__all__
__all__ += tridentnet.__all__
