"""Many simulated runs side by side: does active learning pay on these images, and with which strategy.

::

    simulate.py   the story: plan, runs, results, report
    options.py    what the user asks for, checked: options in, a plan and its data out
    plan.py       which runs with which options; profiles; kept as plan.json beside the results
    parts.py      a plan in, the learner of its runs out: the only place that names a concrete one
    run.py        one run: a strategy and a seed, through the engine's own rounds
    guard.py      keeps train, validation and test apart: a leak stops the run
    journal.py    what a run has done so far, so that a stopped one goes on
    spread.py     runs on several workers; worker.py is one of them, job.py what it does
    progress.py   how far it is, on a terminal or in a log
    rows.py       what a study says: one row a round, one row a picked image, and what it was
    results.py    these rows as files, and back
    report.py     the page about them (with report_*.py, plots.py, plot_parts.py and page.py)
"""

__all__: list[str] = []
