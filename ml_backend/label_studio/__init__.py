"""Everything that speaks Label Studio's API or JSON. Torch-free.

``formats`` reads and writes its JSON and its label configs, ``client`` its API; ``labels``, ``images`` and
``publisher`` are a round's ports on top of them; ``connect`` prepares a project.
"""

__all__: list[str] = []
