"""What computes the float64 scalars of a step: on the host, or as values of a program that is being traced."""
