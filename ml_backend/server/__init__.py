"""WAY IN 1: what Label Studio and the owner's browser talk to. Torch-free; answers in milliseconds, never trains.

::

    serve.py         gunicorn around the app
    app.py           the Flask app: authentication, and errors turned into JSON
    routes.py        one function a URL
    payloads.py      bodies in, validated
    connections.py   /setup: a project and its options
    events.py        /webhook: what an event starts
    predictions.py   /predict: answers from the store
    reconcile.py     finds what no event told
    status.py        /: what every project is doing
    pages.py         /projects/...: the owner's pages and buttons
    owner.py         what these pages show
    now.py           what runs, in words, and the time left
    forms.py         what the buttons do, and who may press them
    figures.py       the figures of the pages
    tables.py        rounds as CSV
    parts.py         what the routes work with
    health.py        /health: what is degraded
    metrics.py       /metrics, for Prometheus
    openapi.py       what the server publishes about itself
"""

__all__: list[str] = []
