"""`ml-backend doctor`: checks everything between Label Studio and the worker, each failure with its remedy.

::

    checks.py   the checks, and the context that they share
    runner.py   runs them, prints the findings, returns the exit status
"""
