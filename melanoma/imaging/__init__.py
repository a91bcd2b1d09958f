"""From the bytes of a file to its pixels, with every limit on hostile and damaged input."""
