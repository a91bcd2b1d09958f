"""Why the network said so."""
