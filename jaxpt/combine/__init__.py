"""Several trained models as one."""
