"""sftprep: the compiler for supervised fine-tuning data of chat models."""

__version__ = "0.1.0"
