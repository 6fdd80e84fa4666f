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
    report.py     the page about them (with report_*.py, plots.py and page.py)

    experiments.py           the story of ``ml-backend experiment``: what is expected, the studies, what they found
    experiment_outlines.py   what each of those that ship asks and expects, in words
    experiment_catalog.py    the studies that answer it, one record each
    experiment_ground.py     the user's tables, or drawn films; makes the options of every study
    experiment_tables.py     tables made of these: of two centres, of a pool of a given size
    experiment_answers.py    how each answer is read off the studies (with experiment_reading.py)
    experiment_uncertainty.py  the same of uncertainty against readers, which fits its networks again
"""

__all__: list[str] = []
