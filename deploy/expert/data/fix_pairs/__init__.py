"""Fix pairs of our own making: templates of Python code, each with a vulnerable and a fixed version, and their
judges.
"""
