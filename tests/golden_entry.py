"""Every name of the package that the golden tests of behaviour use: a move changes this file, and no test.

All else goes through commands, HTTP, files in the data folder and keys in Redis, which users rely on.
"""

from ml_backend.cli import app as cli
from ml_backend.config import Settings
from ml_backend.model.hardware import one_thread
from ml_backend.server.app import create_app
from ml_backend.simulation.synthetic import write_synthetic_study as draw_study
from ml_backend.storage import ProjectStore

__all__ = ["ProjectStore", "Settings", "cli", "create_app", "draw_study", "one_thread"]
