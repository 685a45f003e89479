"""How processes get into containers: plans, and the launcher that executes them (docs/launch.md)."""
