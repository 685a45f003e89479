"""Metrics of pods and containers with cAdvisor's names and labels, for what reads the kubelet's /metrics/cadvisor.

metric.py    what a metric is made of
table.py     which there are: the one place that says so, for ListMetricDescriptors as for the metrics themselves
encoding.py  what a container or pod has used, as the CRI's messages, by the table
metrics.py   the metrics of all pods, encoded once per sample
"""

from cri.pod_metrics.encoding import metric_descriptors
from cri.pod_metrics.metrics import PodMetrics

__all__ = ["PodMetrics", "metric_descriptors"]
