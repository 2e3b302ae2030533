"""Objectives: batch -> losses per sequence, one file each."""
