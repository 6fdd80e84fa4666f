"""The main job on one machine: real services, real labels, a live view.

::

    services.py   Valkey, Label Studio, the backend and the worker as such children
    films.py      the images with their truth: drawn, or from the visitor's folder
    project.py    a Label Studio project with these images in it
    readers.py    simulated readers, each a Label Studio user of its own
    fidelity.py   was the served order the chosen order?
    watch.py      follows the rounds of the project while the readers work
    summary.py    what a round did, as a table and as JSON
    view.py       the live view, or plain lines where there is no terminal
    run.py        the story: bring up, label, compare
"""
