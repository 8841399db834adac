"""How fast each rank really is: measurement, the table that remembers it, and the models that read it."""
