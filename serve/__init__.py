"""The online system: a Ray Serve graph over a bundle."""
