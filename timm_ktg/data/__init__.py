"""Data sets, splits, augmentation and loaders.

Plain values in, device tensors out, by one of two pipelines: `decode` and `MemoryLoader` keep
small images on the device and augment them there; `TransformLoader` reads images from disk and
transforms them as timm does, and `StreamLoader` does so with images that it reads in order.
"""

from __future__ import annotations

from .cache import allowed_bytes, cache_folder, claim, make_room
from .images import channel_stats, check_some, decode, decode_image
from .memory import MemoryLoader
from .mixup import MixupLoader
from .sampling import EpochSampler, EvalSampler, Loader, derive_seed
from .splits import Splits, check_labels, load_splits
from .stream_loader import StreamLoader, stream_of
from .streams import Stream, check_first, load_streams
from .transforms import ToDevice, Transform, TransformLoader, moved_to

__all__ = [
    "EpochSampler",
    "EvalSampler",
    "Loader",
    "MemoryLoader",
    "MixupLoader",
    "Splits",
    "Stream",
    "StreamLoader",
    "ToDevice",
    "Transform",
    "TransformLoader",
    "allowed_bytes",
    "cache_folder",
    "channel_stats",
    "check_first",
    "check_labels",
    "check_some",
    "claim",
    "decode",
    "decode_image",
    "derive_seed",
    "load_splits",
    "load_streams",
    "make_room",
    "moved_to",
    "stream_of",
]
