"""`cri-jails doctor`: what is wrong with this node, or will be, and the line that mends it.

A check looks at one thing and yields findings; `freebsd`, `linux` and `common` have them, `report` shows them. Nothing
here changes the node.
"""

from cri.doctor.examination import examine
from cri.doctor.finding import Check, Finding, Level
from cri.doctor.report import exit_status, render_json, render_table

__all__ = ["Check", "Finding", "Level", "examine", "exit_status", "render_json", "render_table"]
