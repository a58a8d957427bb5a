"""LLM Finetuner: fine-tuning and knowledge distillation with an honest verdict."""

__version__ = "0.1.0"
