"""The end of a run for people: a table on the terminal, and one page with everything."""
