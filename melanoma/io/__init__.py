"""Reading and writing: atomic files, object storage, and what a node keeps of it."""
