"""The simulated cluster: the live gateway's own router over simulated nodes. Pure."""

from bench.simcluster.cluster import Delays, NodeSpec, SimCluster, SimResult

__all__ = ["Delays", "NodeSpec", "SimCluster", "SimResult"]
