"""The web process: what Label Studio, the owner's browser and Prometheus call. Torch-free; never trains.

::

    serve.py         gunicorn around the app
    app.py           the Flask app: routes, authentication, errors as JSON
    webhook.py       /webhook: events of Label Studio
    actions.py       the buttons of a project's page, and who may press them
    context.py       objects that the routes share
    status.py        /: the state of every project
    views.py         /projects/...: the owner's pages
    figures.py       the figures of the pages
    metrics.py       /metrics, for Prometheus
    openapi.py       /openapi.json
"""
