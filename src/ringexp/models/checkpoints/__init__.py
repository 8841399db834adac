"""Read Hugging Face checkpoint folders into FMS models, and check them."""
