"""Packaging of rpo-verl. `hydra_configs/` is installed inside the package, as `rpo_verl.hydra_configs`."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "rpo_verl" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="rpo-verl",
    version=VERSION,
    description="RPO for veRL: reinforcement fine-tuning that generates only the suffix of a cached answer",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=[
        "rpo_verl",
        "rpo_verl.cpu",
        "rpo_verl.hydra_configs",
        "rpo_verl.lean",
        "rpo_verl.r2po",
        "rpo_verl.r2po.hooks",
        "rpo_verl.rewards",
        "rpo_verl.rpo",
        "rpo_verl.rpo.hooks",
        "rpo_verl.tools",
        "rpo_verl.tools.cli",
        "rpo_verl.tools.evaluation",
        "rpo_verl.tools.offline",
        "rpo_verl.tools.report",
        "rpo_verl.upstream",
    ],
    package_dir={"rpo_verl.hydra_configs": "hydra_configs"},
    package_data={"rpo_verl.hydra_configs": ["*/*.yaml"]},
    install_requires=[
        "hydra-core>=1.3",
        "numpy>=2.0",
        "packaging>=20.0",
        "psutil",
        "pyarrow>=19.0",
        "regex",
        "rich>=13.0",
        "safetensors",
        "tqdm>=4.66",
        "typer>=0.15",
        "verl==0.9.1",
        "wrapt>=1.16",
    ],
    extras_require={
        # Exactly veRL's own extras; flash-attn comes through them.
        "gpu": ["verl[vllm,fsdp]==0.9.1"],
        # The reward function of the recipes and of rpo-verl eval; with the ANTLR runtime that Hydra uses.
        "math": ["math-verify[antlr4_9_3]>=0.9", "pebble>=5.2"],
        # rpo-verl report, and the curves of rpo-verl eval-compare
        "report": ["matplotlib>=3.7", "plotly>=6.0", "tensorboard>=2.15"],
    },
    entry_points={
        "console_scripts": ["rpo-verl = rpo_verl.tools.cli.main:app"],
        "verl.plugins": ["rpo_verl = rpo_verl.plugin"],
        "vllm.general_plugins": ["rpo_verl_cpu = rpo_verl.cpu.patches:apply_to_vllm"],
    },
)
