"""Simulated studies on labelled images: whether active learning pays, with which strategy, for how many labels.

::

    options.py    SimulateOptions: what is typed, parsed and checked
    plan.py       StudyPlan: the runs, tables and options of a study, kept as plan.json
    tables.py     labels, readers' answers and features from files; every bad row named by its line
    dataset.py    DataSet: images, true classes, sides; the split by patient
    readers.py    who answers about an image, and what: real ratings, or confusion matrices
    oracle.py     Oracle: reveals labels as Label Studio's readers would
    run.py        do_run: one strategy with one seed, through the live loop's rounds, guarded against leakage
    run_log.py    rows of the results; RunLog, from which a stopped run goes on; CSV files and pandas
    parallel.py   runs in processes of this machine, or on rq workers of several
    study.py      simulate: options in, StudyResults out, with a report
    frames.py     ml_backend.simulate: the same from Python, data frames out
    synthetic.py  synthetic images and simulated readers

    metrics.py, analysis.py, report.py, templates/   results in, report.html and figures out
    compare.py                                       two finished studies side by side
    specs.py, experiments.py, conclusions.py         ``ml-backend experiment``: what is run, running it, the results
"""

__all__: list[str] = []
