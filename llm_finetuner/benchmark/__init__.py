"""Measurements of trained models: quality, text, speed, and the verdict on a distillation."""
