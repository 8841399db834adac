"""What a ring would do: by spec sheets, at measured costs, or as a finished run did. Never imports torch."""
