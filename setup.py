"""Packaging: `tasks/`, `gin_configs/` and `launch/` install inside `dlm_jax`."""

from pathlib import Path

from setuptools import find_packages, setup

# Gin files and job files, which are no Python: the wheel needs them as well.
PACKAGE_DIRECTORIES = {
    "dlm_jax": "dlm_jax",
    "dlm_jax.tasks": "tasks",
    "dlm_jax.gin_configs": "gin_configs",
    "dlm_jax.launch": "launch",
}

REQUIREMENTS = [
    "jax>=0.10.2",  # moves in a pair with flax: see constraints.txt
    "flax>=0.12.8",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "tensorflow",
    "seqio",
    "sentencepiece",
    "tokenizers",
    "safetensors",
    "gin-config>=0.5",
    "clu",
    "tensorboard",  # clu.metric_writers imports it, and TensorFlow no longer brings it
    "etils",
    "numpy",
    "rich",
    "sacrebleu",
    "rouge-score",
    "matplotlib",
]

EXTRAS = {
    "hf": ["huggingface_hub"],
    "quickstart": ["reasoning-gym==0.1.25"],
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    # Compiles for TPUs without one; there are no other files.
    "plan": ["libtpu ; sys_platform == 'linux' and platform_machine == 'x86_64'"],
    "bench": ["torch", "transformers"],
}
EXTRAS["dev"] = [
    *EXTRAS["hf"],
    *EXTRAS["quickstart"],
    *EXTRAS["bench"],
    *EXTRAS["plan"],
    "pytest",
    "pytest-xdist",
    "ruff",
    "mypy",
    "import-linter",
    "setuptools>=77",
]

setup(
    name="dlm_jax",
    version="0.1.0",
    description="Turn masked language models into diffusion language models, in JAX/Flax",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["dlm_jax", "dlm_jax.*"]), *list(PACKAGE_DIRECTORIES)[1:]],
    package_dir=PACKAGE_DIRECTORIES,
    package_data={
        "dlm_jax": ["py.typed"],
        "dlm_jax.gin_configs": ["**/*.gin", "*.gin"],
        "dlm_jax.launch": ["*.sbatch", "*.yaml"],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["dlm=dlm_jax.cli:main"]},
)
