"""Multi-stage retrieval into TREC run files; the version, nothing else."""

__version__ = "0.1.0"
