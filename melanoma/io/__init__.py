"""Reading and writing: atomic files, object storage, and a cache of it on each node."""
