"""Trains a security expert: a LoRA adapter that writes fixed code where a vulnerable version is near, and changes
nothing else.
"""
