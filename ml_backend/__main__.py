"""``python -m ml_backend`` and the ``ml-backend`` command."""

from ml_backend.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
