"""Analysis of trained models (spectra) and of series of runs (scaling_laws)."""
