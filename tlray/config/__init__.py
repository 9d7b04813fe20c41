"""One typed config a command, strict about unknown keys; the same keys in YAML, flags and Python."""

from tlray.config.commands.advice import AdviseConfig, ReportConfig
from tlray.config.commands.extraction import THRESHOLD, ExtractConfig, PolicyConfig, PredictConfig, RunConfig
from tlray.config.commands.search import DuplicatesConfig, IndexConfig, SearchConfig, ServeConfig
from tlray.config.commands.table import AliasConfig, OptimizeConfig, ShowConfig, VacuumConfig, VerifyConfig
from tlray.config.commands.training import (
    ExamplesConfig,
    ExportConfig,
    FitConfig,
    GridConfig,
    HeadConfig,
    NetworkConfig,
    SplitConfig,
    TrainConfig,
)
from tlray.config.sections.recipe import PreprocessingConfig, RecipeConfig, TokensConfig
from tlray.config.sections.section import FailureCode, Section, Side
from tlray.config.sections.source import SourceConfig

__all__ = [
    "THRESHOLD",
    "AdviseConfig",
    "AliasConfig",
    "DuplicatesConfig",
    "ExamplesConfig",
    "ExportConfig",
    "ExtractConfig",
    "FailureCode",
    "FitConfig",
    "GridConfig",
    "HeadConfig",
    "IndexConfig",
    "NetworkConfig",
    "OptimizeConfig",
    "PolicyConfig",
    "PredictConfig",
    "PreprocessingConfig",
    "RecipeConfig",
    "ReportConfig",
    "RunConfig",
    "SearchConfig",
    "Section",
    "ServeConfig",
    "ShowConfig",
    "Side",
    "SourceConfig",
    "SplitConfig",
    "TokensConfig",
    "TrainConfig",
    "VacuumConfig",
    "VerifyConfig",
]
