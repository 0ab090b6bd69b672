"""Dictionaries in the files of other libraries: one file per format, and `formats` to open any of them."""
