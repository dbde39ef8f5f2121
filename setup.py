"""What `pip install` needs to know of LangSAMP-JAX; the exact versions are in requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def _version() -> str:
    """Read, not imported: the dependencies may not be installed yet."""
    text = (Path(__file__).parent / "langsamp_jax" / "__init__.py").read_text("utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


CORE = [
    "altair>=6.1,<7",
    "etils[epath]>=1.15,<2",
    "flax>=0.12.8,<0.13",
    "fonttools>=4.60,<5",
    "gin-config>=0.5,<0.6",
    "jax>=0.10.2,<0.11",
    "jinja2>=3.1,<4",
    "numpy>=2.0,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "protobuf>=6.33,<7",
    "pycountry>=26.2",
    "safetensors>=0.6",
    "scipy>=1.15,<2",
    # 0.2.3 carries protobuf code generated for protobuf 7, which refuses the protobuf 6 that
    # apache-beam requires.
    "sentencepiece==0.2.2",
    "tabulate>=0.9,<1",
    "tensorboard>=2.20,<3",
    "tensorstore>=0.1.86,<0.2",
    "tokenizers>=0.23,<0.24",
    "tqdm>=4.67,<5",
    "vl-convert-python>=1.9,<2",
]

DATA = [
    "apache-beam>=2.77,<3",
    "importlib-resources>=7,<8",  # tensorflow-datasets imports it and does not declare it
    "pyarrow>=25,<26",
    "seqio>=0.0.20,<0.1",
    # Not tensorflow-cpu: tensorflow-text requires the distribution "tensorflow", and the two
    # install different builds of the same files. Without its and-cuda extra, "tensorflow" pulls
    # in no CUDA packages.
    "tensorflow>=2.21,<2.22",
    "tensorflow-datasets>=4.9,<5",
    # 2.21.0 cannot be imported: undefined symbol icudt77_dat.
    "tensorflow-text>=2.21.1,<2.22",
]

TORCH = [
    "torch==2.13.*",
    "transformers>=5.23,<6",
]

WANDB = ["wandb>=0.22,<1"]

GCS = ["gcsfs>=2026.9"]
S3 = ["s3fs>=2026.9"]

DEV = [
    *DATA,
    *TORCH,
    *WANDB,
    *S3,
    "datasets>=5,<6",  # for the tests: it writes the Arrow folders that Glot500-c is made of
    "flask>=3.1,<4",  # with flask-cors, for the S3 server of moto, whose extra brings far more
    "flask-cors>=6,<7",
    "hypothesis>=6.100,<7",
    "libtpu==0.0.42",  # what jax[tpu] asks for: tests compile for TPUs, which needs none
    "moto[s3]>=5.2,<6",
    "playwright>=1.55,<2",
    "pytest>=9,<10",
    "pytest-xdist>=3.8,<4",
    "ruff>=0.17,<0.18",
    "scikit-learn>=1.7,<2",
]

setup(
    name="langsamp-jax",
    version=_version(),
    description="Multilingual encoder pretraining in JAX with language and script embeddings",
    license="Apache-2.0",
    author="The LangSAMP-JAX authors",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["langsamp_jax*", "data_pipelines*"]),
        "gin_configs",  # no code: the shipped configurations
    ],
    package_data={
        "langsamp_jax.languages": ["*.json"],
        "langsamp_jax.report": ["page.*"],
        "gin_configs": ["*.gin", "*/*.gin"],
    },
    install_requires=CORE,
    extras_require={
        "data": DATA,
        "torch": TORCH,
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.11"],
        "wandb": WANDB,
        "gcs": GCS,
        "s3": S3,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["langsamp = langsamp_jax.cli.main:main"]},
)
