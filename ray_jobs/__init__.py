"""Puts the science on a Ray cluster; never imports the search or the server, except in the command line."""
