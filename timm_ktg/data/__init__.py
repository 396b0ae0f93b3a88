"""Data sets, splits, augmentation and loaders.

Plain values in, device tensors out. Two pipelines lead there: `decode` and `MemoryLoader` keep
small images on the device as they are; `TransformLoader` reads and transforms as timm does.
"""

from .images import channel_stats, decode
from .memory import MemoryLoader
from .mixup import MixupLoader
from .sampling import EpochSampler, EvalSampler, Loader, derive_seed
from .splits import Splits, check_labels, load_splits
from .transforms import TransformLoader

__all__ = [
    "EpochSampler",
    "EvalSampler",
    "Loader",
    "MemoryLoader",
    "MixupLoader",
    "Splits",
    "TransformLoader",
    "channel_stats",
    "check_labels",
    "decode",
    "derive_seed",
    "load_splits",
]
