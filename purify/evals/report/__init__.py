"""--mode=report: one HTML file of what evaluations left, to be read without a network."""
