"""The data of a run: files and data sets, read, split and encoded."""
