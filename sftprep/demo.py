"""The tour that `sftprep demo` runs, through the public calls."""
