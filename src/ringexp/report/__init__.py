"""What people look at: console tables and figures."""
