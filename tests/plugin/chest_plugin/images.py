"""An image source outside ml_backend: addresses such as drawn://severe/7."""

import io

from PIL import Image

from ml_backend.errors import ImageError
from ml_backend.images.synthetic import ImagePlan
from ml_backend.schemas import ImageRef

CLASSES = ("normal", "moderate", "severe")


class DrawnImages:
    """Draws the image that an address names: its class and a seed."""

    def fetch(self, image: ImageRef) -> bytes:
        """The image as PNG.

        Raises:
            ImageError: the address names no class.
        """
        severity, _, seed = image.uri.removeprefix("drawn://").partition("/")
        if severity not in CLASSES or not seed.isdecimal():
            raise ImageError(f"image {image.id}: {image.uri} is not drawn://CLASS/SEED", "missing")
        file = io.BytesIO()
        Image.fromarray(ImagePlan(CLASSES.index(severity), len(CLASSES), int(seed), int(seed)).draw(64)).save(
            file, "PNG"
        )
        return file.getvalue()

    def cache_key(self, image: ImageRef) -> str:
        """The address: the same one always draws the same image."""
        return image.uri
