"""The package's extras: which installed modules a command needs, and what to install where one is missing."""

from importlib.util import find_spec

from ml_backend.errors import MissingExtra

DISTRIBUTION = "label-studio-active-learning"
_WORKER = ("torch", "torchvision", "sklearn", "safetensors", "threadpoolctl", "timm")
MODULES = {
    "worker": _WORKER,
    "simulate": (*_WORKER, "matplotlib", "pandas"),
    "dicom": ("pydicom", "imagecodecs"),
    "export": (*_WORKER, "onnx", "onnxruntime", "onnxscript"),
    "mlflow": (*_WORKER, "mlflow"),
}


def require(extra: str, user: str) -> None:
    """Check that the modules of an extra are installed, without importing them.

    Args:
        extra: name of the extra, a key of ``MODULES``.
        user: what needs it, as the subject of the message, such as a command.

    Raises:
        MissingExtra: a module is not installed; the message gives the ``pip install`` command.
    """
    missing = [name for name in MODULES[extra] if find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise MissingExtra(
            f"{user} needs {', '.join(missing)}, which {are} not installed: `pip install '{DISTRIBUTION}[{extra}]'`"
        )
