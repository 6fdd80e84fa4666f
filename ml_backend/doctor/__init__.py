"""`ml-backend doctor`: everything between Label Studio and the worker, one line a check, each failure with its remedy.

It starts no training, downloads no weights, and prints no secret. Two checks write to Label Studio and leave it as it
was: one sets the project's title to what it is, so that an event is sent, and one sends two requests that Label Studio
must refuse, whose answers say which addresses it may call.

::

    check.py            what a check is, and what comes of it
    case.py             one project in one installation: whatever several checks look at, asked for once
    asked_studio.py     checks of Label Studio and the project
    asked_connection.py of what connects it with the backend, and whether events get through
    asked_order.py      of what readers are served
    asked_images.py     of three images, as a round would read them
    asked_worker.py     of Redis, worker and rounds
    asked_machine.py    of data folder, weights and GPU
    memory.py           how much memory a training step takes
    examination.py      all checks, one after the other
    page.py             what is printed of it
    run.py              the command
"""

__all__: list[str] = []
