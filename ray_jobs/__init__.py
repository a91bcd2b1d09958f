"""Runs the pipelines on Ray. Only `ray_jobs.commands` imports the search and the server."""
