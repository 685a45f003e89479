"""Pods and containers: their life cycles, and the port to the operating system that carries them."""
