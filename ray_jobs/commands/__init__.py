"""The commands: each module holds the options of some commands beside the functions that run them.

They compose the packages: only `search` imports the search, only `inference` the server. What is
slow to import is imported inside the functions, so that `melanoma --help` is fast and wrong
settings are refused at once.
"""
