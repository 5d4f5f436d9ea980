"""What is minimised: pure losses over arrays, and objectives that return sums and weights."""
