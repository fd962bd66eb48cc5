"""Ray on this machine, with room for the nodes of a cluster; ends with its standard input.

A process of its own: whatever Ray starts is below it.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "resources": json.loads(sys.argv[1]), "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.head_node
    facts = {"address": cluster.address, "host": node.node_ip_address}
    sys.stdout.write(json.dumps({**facts, "sessions": node.get_session_dir_path()}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
