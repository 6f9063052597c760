"""Studies: is the method worth it? Comparison, reproduction, diagnosis, report."""
