"""Example of a package that extends ml_backend."""
