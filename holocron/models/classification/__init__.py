from holocron.models.classification import mobileone, repvgg
from holocron.models.classification.mobileone import *  # noqa: F403 - the module says what it exports
from holocron.models.classification.repvgg import *  # noqa: F403

__all__: list[str] = []
__all__ += mobileone.__all__
__all__ += repvgg.__all__
