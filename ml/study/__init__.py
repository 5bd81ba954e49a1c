"""Studies: grids of methods, data, noises and seeds that are trained and summarised in a table."""
