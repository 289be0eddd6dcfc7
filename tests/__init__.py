"""A package of its own: torch-fidelity installs another one of this name, which would be found first."""
