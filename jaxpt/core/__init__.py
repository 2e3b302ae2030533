"""The ground floor: spec trees, path-addressed trees, random keys, precision, configuration."""
