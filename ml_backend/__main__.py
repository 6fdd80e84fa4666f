"""``python -m ml_backend`` and the ``ml-backend`` command."""

from ml_backend.cli import main

if __name__ == "__main__":
    main()
