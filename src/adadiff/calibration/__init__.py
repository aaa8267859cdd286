"""A budget or a bound on the error in, an exit policy out."""
