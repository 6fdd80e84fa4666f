"""Dotted paths of jobs as Redis holds them: a job that waits while an installation is updated still resolves."""
