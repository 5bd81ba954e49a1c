"""Reads data sets: archives, folders, tables, class folders, and the index of a ready one. Standard library only."""
