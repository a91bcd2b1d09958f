"""The online system: a Ray Serve graph that serves one bundle."""
