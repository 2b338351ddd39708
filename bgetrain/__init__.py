"""Train text-embedding models the way BGE was trained, from YAML alone."""

__version__ = "0.1.0"
