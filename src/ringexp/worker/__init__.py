"""The work of one rank process: calibrate, plan, measure, check."""
