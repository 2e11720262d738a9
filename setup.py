"""Install metamorph_jax: `pip install -e .`, or `.[all]` for what demo and tests use."""

from setuptools import find_packages, setup

CORE = [
    "absl-py",
    "array_record",
    "av",  # PyAV, with its own FFmpeg libraries
    "clu",
    "einops",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "importlib_resources",  # needed by tensorflow-datasets 4.9.10, which does not declare it
    "jax>=0.10.2,<0.13",
    "jaxtyping",
    "jinja2",
    "ml_collections>=1.1.0",
    "ml_dtypes",
    "numpy",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow",
    "pyarrow",
    "safetensors",
    "sentencepiece",
    "tensorboardX",
    "tensorflow-datasets",
    "tokenizers",
    "transformers>=5.0",
]
VISUALIZER = ["accelerate>=1.15", "diffusers>=0.42", "torch>=2.13"]  # training needs no PyTorch
EXPORT = ["torch>=2.13"]  # to run exported classes from here; writing them does not need it
REPORT = ["matplotlib", "scikit-learn", "scipy"]
# The compiler for TPUs, in the release that the installed jax asks for; no TPU is needed.
PLAN = ["jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'"]
DEV = ["beartype", "hypothesis", "pytest", "pytest-xdist", "ruff"]

setup(
    name="metamorph_jax",
    version="0.1.0",
    description="Visual-predictive instruction tuning (VPiT) and its relatives in JAX/Flax",
    packages=find_packages(include=["metamorph_jax", "metamorph_jax.*"]),
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require={
        "visualizer": VISUALIZER,
        "export": EXPORT,
        "report": REPORT,
        "plan": PLAN,
        "dev": DEV,
        "all": VISUALIZER + REPORT + PLAN + DEV,
    },
)
