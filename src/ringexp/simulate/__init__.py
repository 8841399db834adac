"""Simulated rings: by spec sheets, at measured costs, or as in a finished run. Never imports torch."""
