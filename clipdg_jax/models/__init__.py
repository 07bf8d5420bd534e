"""CLIP's towers as Flax NNX modules, and their pure-function view."""
