"""Image reference -> pixels -> the network's input.

Torch-free, except ``dataset`` and ``transforms``, which are imported by name.
"""

from ml_backend.images.cache import DecodedImage, ImageCache
from ml_backend.images.decode import decode
from ml_backend.images.quarantine import QuarantinedSource
from ml_backend.images.source import FolderSource, ImageSource

__all__ = ["DecodedImage", "FolderSource", "ImageCache", "ImageSource", "QuarantinedSource", "decode"]
