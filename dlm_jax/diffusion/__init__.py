"""The mathematics of the absorbing process: corruption, objectives, likelihood, sampling."""
