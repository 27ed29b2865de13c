"""What the stack costs a month: `python3 infra/costs.py` prints the table of docs/deploy-aws.md.

Prices are assumptions: on demand, us-east-1, in US dollars, from AWS's public price pages as they were in mid-2025,
without free tiers and taxes. Check them before you rely on them; change them here.
"""

from dataclasses import dataclass

HOURS = 730
RUNS = 24 * 30 + 30 * 10
"""Hourly sweeps, and ten runs a day that events wake."""

INSTANCE_HOUR = {"m7i.xlarge": 0.2016, "m7i.2xlarge": 0.4032, "m7i.4xlarge": 0.8064}
DISK_GB = 0.08  # gp3
ADDRESS_HOUR = 0.005  # public IPv4
S3_GB = 0.023  # Standard, first 50 TB
S3_PUTS = 0.005 / 1_000  # PUT and LIST
S3_GETS = 0.0004 / 1_000
SQS_REQUESTS = 0.40 / 1_000_000
ALARM, METRIC = 0.10, 0.30
RDS_HOUR, RDS_GB, SECRET = 0.032, 0.115, 0.40  # db.t4g.small, one zone, gp3

PHOTO_KB = 300
LAKE_KB = 14  # 1,280 features and 160 components of a photo, once as published and once as history
NEW_SHARE = 0.05  # of the photos, each month
LISTINGS = 2  # of the whole prefix, in each run: by `uploads_settled` and `plan`
KEYS_A_PAGE = 1_000
REQUESTS_A_RUN = 500  # to the lake, half of them PUTs
IDLE_POLLS = HOURS * 3_600 / 20  # of the queue


@dataclass(frozen=True)
class Size:
    """A deployment: how many photos, on which host."""

    photos: int
    instance: str
    disk_gb: int = 80


SIZES = (
    Size(10_000, "m7i.xlarge"),
    Size(100_000, "m7i.xlarge"),
    Size(1_000_000, "m7i.xlarge"),
    Size(10_000_000, "m7i.4xlarge", disk_gb=200),
)


def monthly(size: Size) -> dict[str, float]:
    """Dollars a month, by what they are for."""
    new = size.photos * NEW_SHARE
    listed = RUNS * LISTINGS * size.photos / KEYS_A_PAGE
    return {
        "instance": INSTANCE_HOUR[size.instance] * HOURS,
        "address": ADDRESS_HOUR * HOURS,
        "disk": DISK_GB * size.disk_gb,
        "photos": S3_GB * size.photos * PHOTO_KB / 1e6,
        "lake": S3_GB * size.photos * LAKE_KB / 1e6,
        "requests": S3_PUTS * (listed + new + RUNS * REQUESTS_A_RUN / 2)
        + S3_GETS * (new + RUNS * REQUESTS_A_RUN / 2)
        + SQS_REQUESTS * (IDLE_POLLS + 3 * new),
        "watching": 5 * ALARM + 4 * METRIC,
    }


def table() -> str:
    """The costs of all sizes, as Markdown."""
    names = list(monthly(SIZES[0]))
    lines = [
        f"| photos | host | {' | '.join(names)} | **a month** |",
        f"|---|---|{'---|' * len(names)}---|",
    ]
    for size in SIZES:
        costs = monthly(size)
        shown = " | ".join(f"{costs[name]:,.2f}" for name in names)
        lines.append(f"| {size.photos:,} | {size.instance} | {shown} | **${sum(costs.values()):,.0f}** |")
    rds = RDS_HOUR * HOURS + RDS_GB * 20 + SECRET
    lines += ["", f"`UseRds=yes` adds ${rds:,.0f}: db.t4g.small, one zone, 20 GB."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
