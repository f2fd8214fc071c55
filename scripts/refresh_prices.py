"""Rebuild device_profiles/prices/{aws,azure,gcp}.csv from local checkouts of the three public price tables.

    git clone https://github.com/aws/karpenter-provider-aws
    git clone https://github.com/Azure/karpenter-provider-azure
    git clone https://github.com/Cyclenerd/google-cloud-pricing-cost-calculator
    python scripts/refresh_prices.py aws CHECKOUT | azure CHECKOUT | gcp CHECKOUT [--commit REV]

All three repositories are Apache-2.0 and generated from the providers' own price interfaces. Nothing is downloaded here,
so what goes into the tables is what you reviewed. Each row keeps its date and source; read the diff before committing.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

PRICES = Path(__file__).resolve().parent.parent / "device_profiles" / "prices"
COLUMNS = ("provider", "service", "sku", "region", "unit", "price", "date", "source", "verified", "notes",
           "vcpus", "memory_gib", "arch", "cpu_vendor", "accelerator", "accelerator_count", "facts_source")  # fmt: skip
Row = dict[str, str]

AWS_FAMILIES = re.compile(
    r"(a1|t3a?|t4g|[cmr]([5-9])[a-z]*|g[4-9][a-z]*|p[4-9][a-z0-9-]*|inf\d|trn\d[a-z]*)\.(?!metal)[a-z0-9]+"
)
AZURE_NAME = re.compile(
    r"Standard_(?P<family>B|D|F|NC|ND|NV)(?P<vcpus>\d+)(?P<features>[a-z]*)(?:_(?P<accelerator>[A-Z]+\d+))?(?:_v\d+)?"
)
GCP_NAME = re.compile(
    r"(e2|n1|n2d?|n4[ad]?|t2[ad]|c2d?|c3d?|c4[ad]?|g[24]|a[23])-(standard|highcpu|highgpu|ultragpu)-\d+g?"
)
GCP_ARM = ("t2a", "c4a", "n4a")


def show(checkout: Path, commit: str, path: str) -> str:
    """One file of the checkout at that commit."""
    command = ["git", "-C", str(checkout), "show", f"{commit}:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def aws(checkout: Path, commit: str) -> Iterator[Row]:
    """On-demand Linux prices of us-east-1, with the instance facts of the same repository."""
    prices_path = "pkg/providers/pricing/zz_generated.pricing_aws.go"
    types_path = "website/content/en/docs/reference/instance-types.md"
    text = show(checkout, commit, prices_path)
    date = re.search(r"generated at (\d{4}-\d\d-\d\d)", text)
    block = text[text.index('"us-east-1": {') :]
    block = block[: block.index("\n\t},")]
    facts = {}
    for section in re.split(r"\n### `", show(checkout, commit, types_path))[1:]:
        labels = dict(re.findall(r"\|(?:karpenter\.k8s\.aws/instance-|kubernetes\.io/)([a-z-]+)\|([^|]*)\|", section))
        facts[section[: section.index("`")]] = labels
    for name, price in sorted(re.findall(r'"([a-z0-9-]+\.[a-z0-9-]+)": ([0-9.]+)', block)):
        if not AWS_FAMILIES.fullmatch(name):
            continue
        labels = facts.get(name, {})
        count = labels.get("gpu-count") or labels.get("accelerator-count") or ""
        yield {
            "provider": "aws",
            "service": "ec2-on-demand-linux",
            "sku": name,
            "region": "us-east-1",
            "price": price.rstrip("0"),
            "date": date[1] if date else "",
            "source": f"https://github.com/aws/karpenter-provider-aws/blob/{commit}/{prices_path}",
            "vcpus": labels.get("cpu", ""),
            "memory_gib": f"{int(labels['memory']) / 1024:g}" if "memory" in labels else "",
            "arch": {"amd64": "x86_64", "arm64": "arm64"}.get(labels.get("arch", ""), ""),
            "cpu_vendor": labels.get("cpu-manufacturer", ""),
            "accelerator": labels.get("gpu-name") or labels.get("accelerator-name") or "",
            # The table rounds the fractional GPUs of g6f down to 0; the fraction itself isn't told there.
            "accelerator_count": "" if count == "0" else count,
            "notes": "fraction of one GPU" if count == "0" else "",
            "facts_source": f"https://github.com/aws/karpenter-provider-aws/blob/{commit}/{types_path}"
            if labels
            else "",
        }


def azure(checkout: Path, commit: str) -> Iterator[Row]:
    """Pay-as-you-go Linux prices of eastus; vCPUs, architecture and accelerator follow from Azure's size names."""
    path = "pkg/providers/pricing/zz_generated.pricing.go"
    text = show(checkout, commit, path)
    date = re.search(r"generated at (\d{4}-\d\d-\d\d)", text)
    block = text[text.index('initialOnDemandPrices["eastus"]') :]
    block = block[: block.index("\n\t}")]
    for name, price in sorted(re.findall(r'"(Standard_[A-Za-z0-9_]+)":\s+([0-9.]+)', block)):
        match = AZURE_NAME.fullmatch(name)
        if match is None or ("_v" not in name and not name.startswith("Standard_B")) or name.endswith("_Promo"):
            continue
        arm = "p" in match["features"]
        accelerated = match["family"].startswith("N")
        fraction = re.match(r"Standard_NV(6|12|18)ad[a-z]*_A10", name)
        yield {
            "provider": "azure",
            "service": "vm-paygo-linux",
            "sku": name,
            "region": "eastus",
            "price": price.rstrip("0"),
            "date": date[1] if date else "",
            "source": f"https://github.com/Azure/karpenter-provider-azure/blob/{commit}/{path}",
            "notes": "fraction of one GPU: NV6, NV12 and NV18 are 1/6, 1/3 and 1/2 of an A10" if fraction else "",
            "vcpus": match["vcpus"],
            "arch": "arm64" if arm else "x86_64",
            "cpu_vendor": "" if arm else "amd" if "a" in match["features"] else "",
            "accelerator": (match["accelerator"] or "gpu").lower() if accelerated else "",
            "facts_source": "https://learn.microsoft.com/azure/virtual-machines/vm-naming-conventions",
        }


def gcp(checkout: Path, commit: str) -> Iterator[Row]:
    """On-demand and spot prices of us-central1, GPUs included."""
    text = show(checkout, commit, "pricing.yml")
    generated = re.search(r"timestamp: (\d+)", text)
    date = datetime.fromtimestamp(int(generated[1]), timezone.utc).date().isoformat() if generated else ""
    block = text[text.index("\n  instance:") : text.index("\n  license:")]
    source = f"https://github.com/Cyclenerd/google-cloud-pricing-cost-calculator/blob/{commit}/pricing.yml"
    for section in re.split(r"\n    (?=[a-z0-9])", block)[1:]:
        name = section[: section.index(":")]
        if not GCP_NAME.fullmatch(name):
            continue
        facts = dict(re.findall(r"\n      ([a-z0-9-]+): ([0-9.]+)", section))
        gpus = {key: count for key, count in facts.items() if key not in ("cpu", "ram", "local-ssd")}
        region = re.search(r"\n        us-central1:((?:\n          .*)+)", section)
        costs = dict(re.findall(r"\n          ([a-z0-9_]+): ([0-9.]+)", region[1])) if region else {}
        for key, service in (("hour", "gce-on-demand"), ("hour_spot", "gce-spot")):
            if float(costs.get(key, 0)) <= 0:
                continue
            accelerator, count = next(iter(gpus.items()), ("", ""))
            yield {
                "provider": "gcp",
                "service": service,
                "sku": name,
                "region": "us-central1",
                "price": costs[key],
                "date": date,
                "source": source,
                "notes": "GPU included" if gpus else "",
                "vcpus": facts.get("cpu", ""),
                "memory_gib": facts.get("ram", ""),
                "arch": "arm64" if name.startswith(GCP_ARM) else "x86_64",
                "accelerator": accelerator,
                "accelerator_count": count,
                "facts_source": f"{source} ; arch: https://cloud.google.com/compute/docs/instances/arm-on-compute",
            }


def main() -> None:
    """Write one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("provider", choices=("aws", "azure", "gcp"))
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", default="HEAD")
    options = parser.parse_args()
    command = ["git", "-C", str(options.checkout), "rev-parse", "--short=12", options.commit]
    commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    rows = [
        {"unit": "USD/h", "verified": "true", **row}
        for row in {"aws": aws, "azure": azure, "gcp": gcp}[options.provider](options.checkout, commit)
    ]
    path = PRICES / f"{options.provider}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{path.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
