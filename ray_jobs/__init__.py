"""Runs the pipelines on Ray. Only `ray_jobs.cli` imports the search and the server."""
