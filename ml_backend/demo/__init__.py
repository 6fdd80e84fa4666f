"""The whole loop on one machine: real services, real labels, a live view.

::

    options.py   the visitor's options; the images with their labels, drawn or read; options of the project
    services.py  Label Studio, the backend and the worker as child processes
    project.py   a project in Label Studio, labelled by readers until enough rounds are published
    readers.py   simulated readers, each a user of Label Studio
    summary.py   the view, the check of the served order, the table of rounds and its JSON
    run.py       start, label, compare
"""
