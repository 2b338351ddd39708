from bgetrain.embedder import Embedder as Embedder

__all__ = ["Embedder", "__version__"]
__version__: str
