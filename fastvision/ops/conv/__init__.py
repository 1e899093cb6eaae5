"""Convolutions: conv2d.py, transpose.py and linear.py hold the ops, operators.py the operators."""
