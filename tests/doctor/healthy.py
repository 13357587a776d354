"""A healthy rank."""


def facts(rank=0, node="n1", **changes):
    """What a healthy rank says of itself."""
    healthy = {
        "rank": rank,
        "local_rank": 0,
        "node": node,
        "failed": {},
        "versions": {"python": "3.11.7", "numpy": "2.4.6", "code": "abc"},
        "apex": "none",
        "gpus": {"devices": [], "driver": None, "nccl": None, "seen": 0},
        "network": {
            "interface": "eth0",
            "address": f"10.0.0.{rank}",
            "there": ["eth0", "lo"],
            "asked": {},
        },
        "disk": {"free_gib": 100.0, "write_mb_per_second": 500.0, "read_mb_per_second": 900.0},
        "operators": {"fused_adam": "can be built"},
        "compilers": {"c++": "/usr/bin/c++", "ninja": "/usr/bin/ninja", "nvcc": None},
    }
    return {**healthy, **changes}
