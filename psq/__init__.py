"""psq: a distributed task queue on Google Cloud Pub/Sub."""

__version__ = "1.0.0"
