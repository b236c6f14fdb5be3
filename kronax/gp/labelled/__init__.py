"""DataArrays and Datasets."""
